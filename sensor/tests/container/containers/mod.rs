//! Real containers: a containerd of the test's own, with runc, in the cgroups that a kubelet would name. It needs
//! root, but no registry: the image is made here, of one program that opens one file.
#![allow(dead_code, clippy::allow_attributes, reason = "each test takes from here what it needs")]
mod cgroup;
mod image;

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::Timespec,
    mount::{UnmountFlags, unmount},
    process::{Pid, Signal, kill_process},
};

use self::cgroup::Cgroups;
pub(crate) use self::cgroup::mounts;

/// A container is up within half a second; a busy machine is slow, a broken runtime is for ever.
const PATIENCE: Duration = Duration::from_secs(60);
/// Where a kubelet's containers are; a namespace of containerd's, not of the kernel's.
const NAMESPACE: &str = "k8s.io";

/// A container by its names.
#[derive(Clone, Debug)]
pub(crate) struct Container {
    pub(crate) id: String,
    pub(crate) pod_uid: String,
}

impl Container {
    /// One that nobody else has, alone in its pod.
    pub(crate) fn new() -> Self {
        let random = || uuid::Uuid::new_v4();
        Self { id: format!("{}{}", random().simple(), random().simple()), pod_uid: random().to_string() }
    }

    /// The cgroup that a kubelet with the cgroupfs driver gives it.
    pub(crate) fn cgroup(&self) -> String {
        format!("/kubepods/besteffort/pod{}/{}", self.pod_uid, self.id)
    }
}

/// A containerd with an image in it. Dropped, it takes its containers, mounts and cgroups along.
pub(crate) struct Containerd {
    directory: tempfile::TempDir,
    daemon: Child,
    cgroups: Cgroups,
}

impl Containerd {
    /// Starts it, waits until it answers, and gives it an image that has `files`, which are empty.
    pub(crate) fn start(files: &[String]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path().display();
        // The CRI plugin needs CAP_SYS_RESOURCE and a network; `opt` makes directories below /opt.
        let config = format!(
            "version = 2\nroot = '{at}/root'\nstate = '{at}/state'\n\
             disabled_plugins = ['io.containerd.grpc.v1.cri', 'io.containerd.internal.v1.opt']\n\
             [grpc]\naddress = '{at}/socket'\n"
        );
        fs::write(directory.path().join("config.toml"), config).unwrap();
        let log = log_file(directory.path());
        let daemon = Command::new("containerd")
            .arg("--config")
            .arg(directory.path().join("config.toml"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|why| panic!("containerd: {why}; type: e2e/setup.sh containers"));
        let mut containerd = Self { directory, daemon, cgroups: Cgroups::default() };
        containerd.wait_until_it_answers();
        image::make(containerd.path(), files);
        let import = ["images", "import", containerd.file("image.tar").to_str().unwrap()].map(str::to_owned);
        containerd.succeed(containerd.ctr().args(import));
        containerd
    }

    fn wait_until_it_answers(&mut self) {
        let began = Instant::now();
        while !self.ctr().arg("version").output().unwrap().status.success() {
            let ended = self.daemon.try_wait().unwrap();
            assert!(ended.is_none() && began.elapsed() < PATIENCE, "containerd: {ended:?}\n{}", self.log());
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Its directory, which every process that it starts names in its arguments.
    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// The end of its log.
    fn log(&self) -> String {
        let log = fs::read_to_string(self.file("log")).unwrap();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    fn ctr(&self) -> Command {
        let mut ctr = Command::new("ctr");
        ctr.arg("--address").arg(self.file("socket")).args(["--namespace", NAMESPACE]).stdin(Stdio::null());
        ctr
    }

    fn succeed(&self, command: &mut Command) -> Output {
        let output = command.output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command:?}: {}\n{error}\n{}", output.status, self.log());
        output
    }

    /// `ctr run` of the image's program in the container's cgroup, with these arguments.
    fn ctr_run(&self, container: &Container, options: &[&str], arguments: &[&str]) -> Command {
        self.cgroups.note(&container.cgroup());
        let mut run = self.ctr();
        run.args(["run", "--rm", "--cgroup", &container.cgroup(), "--runc-root"]).arg(self.file("runc"));
        run.arg("--fifo-dir").arg(self.file("fifo")).args(options);
        run.args([image::NAME, &container.id, image::PROGRAM]).args(arguments);
        run
    }

    /// What runs a container that opens `file`, to its end and removal. It fails if there is no such file.
    pub(crate) fn by_containerd(&self, container: &Container, file: &str) -> Command {
        self.ctr_run(container, &["--null-io"], &[file])
    }

    /// The same by runc alone, without containerd and its shim: four times as fast.
    pub(crate) fn by_runc(&self, container: &Container, file: &str) -> Command {
        self.cgroups.note(&container.cgroup());
        let bundle = self.file("bundles").join(&container.id);
        image::make_bundle(&bundle, &self.file("rootfs"), &container.cgroup(), file);
        let mut runc = Command::new("runc");
        runc.arg("--root").arg(self.file("runc").join(NAMESPACE)).args(["run", "--bundle"]).arg(bundle);
        runc.arg(&container.id).stdin(Stdio::null());
        runc
    }

    /// Runs a container that opens `file`, to its end and removal. Threads may run several at a time.
    pub(crate) fn run(&self, container: &Container, file: &str) {
        self.succeed(&mut self.by_containerd(container, file));
    }

    /// Starts a container that opens `file` and then stays until it is released.
    pub(crate) fn hold(&self, container: &Container, file: &str) -> Held {
        let pid_file = self.file(&format!("{}.pid", container.id));
        let mut run = self.ctr_run(container, &["--pid-file", pid_file.to_str().unwrap()], &[file, "stay"]);
        let mut ctr =
            run.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log_file(self.path())).spawn().unwrap();
        let stdin = ctr.stdin.take().unwrap();
        let mut stdout = BufReader::new(ctr.stdout.take().unwrap());
        let limit = Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
        let ready = poll(&mut [PollFd::new(stdout.get_ref(), PollFlags::IN)], Some(&limit)).unwrap();
        assert_eq!(ready, 1, "{run:?} said nothing for {PATIENCE:?}\n{}", self.log());
        let mut said = String::new();
        stdout.read_line(&mut said).unwrap();
        assert_eq!(said, "opened\n", "{run:?}\n{}", self.log());
        Held { pid: fs::read_to_string(pid_file).unwrap().trim().parse().unwrap(), ctr, stdin }
    }

    /// Processes that this harness has started, and what they have started.
    fn processes(&self) -> Vec<Pid> {
        let mut found = self.cgroups.members();
        let numbers =
            fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
        for pid in numbers.filter_map(Pid::from_raw) {
            let Ok(arguments) = fs::read_to_string(format!("/proc/{}/cmdline", pid.as_raw_nonzero())) else {
                continue;
            };
            let name = arguments.split('\0').next().unwrap().rsplit('/').next().unwrap();
            let ours = ["containerd", "containerd-shim-runc-v2", "ctr", "runc"].contains(&name);
            if ours && arguments.contains(self.path().to_str().unwrap()) {
                found.push(pid);
            }
        }
        found
    }

    /// The shims' sockets, which are not in the harness's directory.
    fn shim_sockets(&self) -> Vec<PathBuf> {
        let bundles = fs::read_dir(self.file("state/io.containerd.runtime.v2.task").join(NAMESPACE));
        let bundles = bundles.into_iter().flatten().map(|entry| entry.unwrap().path());
        let addresses = bundles.filter_map(|bundle| fs::read_to_string(bundle.join("address")).ok());
        addresses.filter_map(|address| Some(address.strip_prefix("unix://")?.into())).collect()
    }

    /// Mounts in the harness's directory, the innermost first.
    pub(crate) fn mounts_below(directory: &Path) -> Vec<PathBuf> {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let points = table.lines().rev().map(|line| PathBuf::from(line.split(' ').nth(4).unwrap()));
        points.filter(|point| point.starts_with(directory)).collect()
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let sockets = self.shim_sockets();
        self.daemon.kill().ok();
        self.daemon.wait().ok();
        let began = Instant::now();
        loop {
            // Each may have started another since.
            let left = self.processes();
            for pid in &left {
                kill_process(*pid, Signal::KILL).ok();
            }
            if left.is_empty() && self.cgroups.remove() {
                break;
            }
            // A panic in a panic would hide the first.
            if began.elapsed() > PATIENCE {
                assert!(thread::panicking(), "left behind: {left:?}, {:?}", self.cgroups);
                break;
            }
            thread::sleep(Duration::from_millis(10));
        }
        for point in Self::mounts_below(self.path()) {
            unmount(point, UnmountFlags::DETACH).ok();
        }
        sockets.iter().for_each(|socket| drop(fs::remove_file(socket)));
    }
}

/// Its log, to which others may add.
fn log_file(directory: &Path) -> File {
    File::options().create(true).append(true).open(directory.join("log")).unwrap()
}

/// A container that stays, its file opened.
pub(crate) struct Held {
    /// Of the program in the container, as this machine numbers it.
    pub(crate) pid: u32,
    ctr: Child,
    stdin: ChildStdin,
}

impl Held {
    /// Lets it end, and waits until it is removed.
    pub(crate) fn release(self) {
        let Self { mut ctr, stdin, .. } = self;
        drop(stdin);
        let status = ctr.wait().unwrap();
        assert!(status.success(), "{status}");
    }
}
