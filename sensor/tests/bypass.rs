//! Ways around a policy, tried on a running sensor: each must alert. Needs root.
#![expect(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]
mod common;
#[path = "common/moved.rs"]
mod moved;
#[path = "common/running.rs"]
mod running;
#[path = "common/schema.rs"]
mod schema;

use std::{
    fs,
    os::unix::{
        fs::{PermissionsExt as _, chown, symlink},
        process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use common::{pathwatch, root};
use running::{PATIENCE, Sensor};
use serde_json::Value;
use tempfile::TempDir;

/// A directory that stands for a machine, and a sensor that watches it.
struct Machine {
    sensor: Sensor,
    at: PathBuf,
    _dir: TempDir,
}

impl Machine {
    /// `@` in `policies` is the machine's directory.
    fn new(policies: &str) -> Self {
        Self::below(&std::env::temp_dir(), policies)
    }

    /// The same in a directory of `parent`.
    fn below(parent: &Path, policies: &str) -> Self {
        let dir = tempfile::tempdir_in(parent).unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let at = dir.path().canonicalize().unwrap();
        for directory in ["bin", "elsewhere", "policies", "home/ann/.ssh"] {
            fs::create_dir_all(at.join(directory)).unwrap();
        }
        let sentinel = "---\napiVersion: pathwatch.dev/v1alpha1\nkind: ClusterPathPolicy\nmetadata: {name: sentinel}\nspec: {subjects: all, paths: [@/sentinel]}\n";
        let text = format!("{policies}{sentinel}").replace('@', at.to_str().unwrap());
        fs::write(at.join("policies/p.yaml"), text).unwrap();
        for (name, text) in [
            ("secret", "s"),
            ("elsewhere/secret", "s"),
            ("sentinel", ""),
            ("home/ann/.ssh/id_rsa", "k"),
            ("home/ann/.ssh/known_hosts", "h"),
        ] {
            fs::write(at.join(name), text).unwrap();
        }
        fs::copy("/bin/cat", at.join("bin/tool")).unwrap();
        let sensor = Sensor::start(pathwatch().args(["run", "--policies", "policies"]).current_dir(&at));
        Self { sensor, at, _dir: dir }
    }

    fn path(&self, name: &str) -> String {
        self.at.join(name).to_str().unwrap().to_owned()
    }

    /// Runs a program to its end and returns the alerts of the policy `p` that it raised.
    fn alerts(&self, command: &mut Command) -> Vec<Value> {
        let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status().unwrap();
        assert!(status.success(), "{command:?}");
        self.alerts_so_far()
    }

    fn alerts_so_far(&self) -> Vec<Value> {
        // Events come in order: once this one is there, so are all before it.
        fs::read(self.at.join("sentinel")).unwrap();
        let mut alerts = Vec::new();
        loop {
            let alert = self.sensor.lines.recv_timeout(PATIENCE).unwrap();
            if alert["rule"]["name"] == "sentinel" {
                return alerts;
            }
            alerts.push(alert);
        }
    }

    /// The alerts of `program arguments…`.
    fn run(&self, program: &str, arguments: &[&str]) -> Vec<Value> {
        self.alerts(Command::new(program).args(arguments))
    }
}

const POLICY: &str = "apiVersion: pathwatch.dev/v1alpha1\nkind: ClusterPathPolicy\nmetadata: {name: p}\nspec:\n  subjects: all\n  paths: ['@/{,elsewhere/}secret', '@/home/*/.ssh/**']\n  exclude: ['@/home/*/.ssh/known_hosts']\n  exceptions: [{executables: ['@/bin/tool', '@/bin/linked']}]\n";

/// The one alert of a list, on this path by this program.
fn assert_one(alerts: &[Value], path: &str, executable: &str) {
    assert_eq!(alerts.len(), 1, "{alerts:#?}");
    assert_eq!(
        (&alerts[0]["file"]["path"], &alerts[0]["process"]["executable"]),
        (&path.into(), &executable.into())
    );
}

#[test]
fn an_exempt_program_is_silent_and_all_that_pass_for_it_are_not() {
    let machine = Machine::new(POLICY);
    let (secret, tool) = (machine.path("secret"), machine.path("bin/tool"));
    assert_eq!(machine.run(&tool, &[&secret]), Vec::<Value>::new(), "the exempt program itself");
    assert_one(&machine.run("/usr/bin/cat", &[&secret]), &secret, "/usr/bin/cat");

    // Its name in another directory, and its name as the process's own.
    let renamed = machine.path("elsewhere/tool");
    fs::copy("/bin/cat", &renamed).unwrap();
    assert_one(&machine.run(&renamed, &[&secret]), &secret, &renamed);
    let called = machine.alerts(Command::new("/usr/bin/cat").arg0(&tool).arg(&secret));
    assert_one(&called, &secret, "/usr/bin/cat");

    // Its path as a link to a shell.
    let linked = machine.path("bin/linked");
    symlink("/bin/bash", &linked).unwrap();
    assert_one(&machine.run(&linked, &["-c", &format!("read x < {secret}; true")]), &secret, "/usr/bin/bash");

    // A mount namespace in which another program is at its path.
    let mount = format!("mount --bind /bin/tac {tool} && exec {tool} {secret}");
    assert_one(&machine.run("unshare", &["--mount", "sh", "-c", &mount]), &secret, &tool);

    // A chroot in which another program is at its path.
    let jail = machine.path("elsewhere");
    let inner = format!("{jail}{tool}");
    fs::create_dir_all(Path::new(&inner).parent().unwrap()).unwrap();
    fs::copy(std::env::current_exe().unwrap(), &inner).unwrap();
    let mut jailed = Command::new("chroot");
    jailed.args([&jail, &tool, "--exact", "a_reader_in_a_container", "--ignored"]).env("READ", "/secret");
    assert_one(&machine.alerts(&mut jailed), &format!("{jail}/secret"), &inner);
}

#[test]
fn a_program_that_others_can_write_or_that_has_no_file_is_not_trusted() {
    let machine = Machine::new(POLICY);
    let (secret, tool) = (machine.path("secret"), machine.path("bin/tool"));
    assert_eq!(machine.run(&tool, &[&secret]), Vec::<Value>::new());
    for mode in [0o757, 0o775] {
        fs::set_permissions(&tool, fs::Permissions::from_mode(mode)).unwrap();
        assert_one(&machine.run(&tool, &[&secret]), &secret, &tool);
    }
    fs::set_permissions(&tool, fs::Permissions::from_mode(0o755)).unwrap();
    chown(&tool, Some(65534), None).unwrap();
    assert_one(&machine.run(&tool, &[&secret]), &secret, &tool);

    // An anonymous file with the exempt program's path for a name.
    let memfd = rustix::fs::memfd_create(tool.as_str(), rustix::fs::MemfdFlags::empty()).unwrap();
    let mut file = fs::File::from(memfd);
    std::io::copy(&mut fs::File::open("/bin/cat").unwrap(), &mut file).unwrap();
    let fd = format!("/proc/{}/fd/{}", std::process::id(), std::os::fd::AsRawFd::as_raw_fd(&file));
    // Written to no more, or execve(2) says that it is busy.
    let program = fs::File::open(&fd).unwrap();
    drop(file);
    let fd = format!("/proc/{}/fd/{}", std::process::id(), std::os::fd::AsRawFd::as_raw_fd(&program));
    assert_one(&machine.run(&fd, &[&secret]), &secret, &format!("memfd:{tool}"));
}

#[test]
fn a_user_that_somebody_made_himself_is_no_exempt_user() {
    let machine = Machine::new(&POLICY.replace("[{executables", "[{users: [0], executables"));
    let (secret, tool) = (machine.path("secret"), machine.path("bin/tool"));
    assert_eq!(machine.run(&tool, &[&secret]), Vec::<Value>::new(), "root itself");
    // Anybody is root in a user namespace of his own.
    assert_one(&machine.run("unshare", &["--user", "--map-root-user", &tool, &secret]), &secret, &tool);
}

#[test]
fn an_excluded_name_that_is_a_link_to_a_watched_file_alerts() {
    let machine = Machine::new(POLICY);
    let (known, key) = (machine.path("home/ann/.ssh/known_hosts"), machine.path("home/ann/.ssh/id_rsa"));
    assert_eq!(machine.run("/usr/bin/cat", &[&known]), Vec::<Value>::new(), "the excluded file itself");
    fs::remove_file(&known).unwrap();
    symlink(&key, &known).unwrap();
    // That it was removed is told, where the call says no more than letters, which exclude nothing.
    machine.alerts_so_far();
    assert_one(&machine.run("/usr/bin/cat", &[&known]), &key, "/usr/bin/cat");
}

#[test]
fn a_policy_that_names_a_link_fires_on_the_file_behind_it() {
    let text = POLICY.replace("@/{,elsewhere/}secret", "@/link/secret");
    let machine = Machine::new(&text);
    symlink(&machine.at, machine.at.join("link")).unwrap();
    let secret = machine.path("secret");
    // The links of a root are looked up when it is first seen, beside the events.
    let began = std::time::Instant::now();
    let alerts = loop {
        let alerts = machine.run("/usr/bin/cat", &[&secret]);
        if !alerts.is_empty() {
            break alerts;
        }
        assert!(began.elapsed() < PATIENCE, "{}", machine.sensor.log());
    };
    assert_one(&alerts, &secret, "/usr/bin/cat");
    assert_eq!(alerts[0]["pathwatch"]["matched_by"], "identity");
    assert!(alerts[0]["pathwatch"]["pattern"].as_str().unwrap().ends_with("/link/secret"));
}

#[test]
fn an_exempt_script_is_silent_only_where_root_keeps_it_and_when_it_is_what_was_run() {
    // The exception's shell needs a second criterion, which is the script.
    let policy = "apiVersion: pathwatch.dev/v1alpha1\nkind: ClusterPathPolicy\nmetadata: {name: p}\nspec:\n  subjects: all\n  paths: ['@/secret']\n  exceptions: [{scripts: ['@/elsewhere/run', '@/open/run']}]\n";
    // Below /tmp anybody could put a script where another was.
    let machine = Machine::below(Path::new("/var/lib"), policy);
    let (secret, shell) = (machine.path("secret"), fs::canonicalize("/bin/sh").unwrap());
    let shell = shell.to_str().unwrap();
    let script = |name: &str| {
        let path = machine.at.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, format!("#!{shell}\nread line < {secret} || true\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let exempt = script("elsewhere/run");
    assert_eq!(machine.run(&exempt, &[]), Vec::<Value>::new(), "the exempt script itself");
    let mut relative = Command::new("./run");
    assert_eq!(machine.alerts(relative.current_dir(machine.at.join("elsewhere"))), Vec::<Value>::new());

    // Another script; the exempt one as an argument, which anybody can give; a name for it that leads elsewhere.
    assert_one(&machine.run(&script("other"), &[]), &secret, shell);
    assert_one(&machine.run(shell, &[&exempt]), &secret, shell);
    script("far/elsewhere/run");
    fs::create_dir_all(machine.at.join("far/deep")).unwrap();
    symlink(machine.at.join("far/deep"), machine.at.join("deep")).unwrap();
    let letters = machine.path("deep/../elsewhere/run");
    assert_one(&machine.run(&letters, &[]), &secret, shell);
    symlink(machine.path("far"), machine.at.join("elsewhere/way")).unwrap();
    assert_one(&machine.run(&machine.path("elsewhere/way/elsewhere/run"), &[]), &secret, shell);

    // Where others may write, it may have been another when it was run.
    let open = script("open/run");
    assert_eq!(machine.run(&open, &[]), Vec::<Value>::new());
    for (name, mode) in [("open", 0o777), ("open/run", 0o757)] {
        fs::set_permissions(machine.path(name), fs::Permissions::from_mode(mode)).unwrap();
        assert_one(&machine.run(&open, &[]), &secret, shell);
        fs::set_permissions(machine.path(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
    chown(machine.path("open"), Some(65534), None).unwrap();
    assert_one(&machine.run(&open, &[]), &secret, shell);

    // In a mount namespace of one's own it is another script by the same name.
    let bind = format!("mount --bind {0}/far/elsewhere {0}/elsewhere; exec {exempt}", machine.at.display());
    let mut elsewhere = Command::new("unshare");
    assert_one(&machine.alerts(elsewhere.args(["--mount", shell, "-c", &bind])), &secret, shell);
}

/// A process in a root and a cgroup as a container runtime makes them: the image as the lower layer of an overlay.
struct Container {
    machine: Machine,
    cgroup: PathBuf,
}

impl Container {
    fn new(policies: &str) -> Self {
        let machine = Machine::new(policies);
        for directory in
            ["image/bin", "image/proc", "image/data", "image/old", "upper", "work", "merged", "volume"]
        {
            fs::create_dir_all(machine.at.join(directory)).unwrap();
        }
        fs::copy(std::env::current_exe().unwrap(), machine.at.join("image/bin/reader")).unwrap();
        let hierarchy = sensor::hierarchy::Hierarchy::find(Path::new("/sys/fs/cgroup")).unwrap();
        let id = format!("{:064x}", fastrand::u128(..));
        let cgroup = hierarchy.root.join(id);
        fs::create_dir(&cgroup).unwrap();
        Self { machine, cgroup }
    }

    /// The alerts of `/bin/reader` reading `file` in the container, after `prepare` in its mount namespace.
    fn read(&self, prepare: &str, file: &str) -> Vec<Value> {
        let at = self.machine.at.display();
        let script = format!(
            "set -e; echo $$ > {cgroup}/cgroup.procs
             mount -t overlay overlay -o lowerdir={at}/image,upperdir={at}/upper,workdir={at}/work {at}/merged
             mount -t proc proc {at}/merged/proc; cd {at}/merged; {prepare}
             pivot_root . old; cd /
             /bin/reader --exact a_reader_in_a_container --ignored > /done
             read until_the_alerts_are_there",
            cgroup = self.cgroup.display(),
        );
        // The shell is what a container's first process is: made by root from the host, and there all the time.
        let mut command = Command::new("unshare");
        command.args(["--mount", "bash", "-c", &script]).env("READ", file);
        let mut container = command.stdin(Stdio::piped()).spawn().unwrap();
        let (done, began) = (self.machine.at.join("upper/done"), std::time::Instant::now());
        while !fs::read_to_string(&done).is_ok_and(|text| text.contains("test result: ok. 1 passed")) {
            assert!(container.try_wait().unwrap().is_none() && began.elapsed() < PATIENCE, "{script}");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let alerts = self.machine.alerts_so_far();
        drop(container.stdin.take());
        container.wait().unwrap();
        fs::remove_file(done).unwrap();
        alerts
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        fs::remove_dir(&self.cgroup).ok();
    }
}

/// What runs in the container.
#[test]
#[ignore = "is started in a container by the tests of this file"]
fn a_reader_in_a_container() {
    for file in std::env::var("READ").unwrap().split(' ') {
        fs::read(file).unwrap();
    }
}

#[test]
fn in_a_container_only_what_came_with_the_image_is_exempt() {
    let policy = "apiVersion: pathwatch.dev/v1alpha1\nkind: ClusterPathPolicy\nmetadata: {name: p}\nspec:\n  subjects: pods\n  paths: [/data/secret]\n  exceptions: [{executables: [/bin/reader]}]\n";
    let container = Container::new(policy);
    let at = container.machine.at.clone();
    fs::write(at.join("image/data/secret"), "s").unwrap();
    assert_eq!(container.read("true", "/data/secret"), Vec::<Value>::new(), "the image's own program");

    // From a volume over the same path.
    fs::copy(at.join("image/bin/reader"), at.join("volume/reader")).unwrap();
    let volume = format!("mount --bind {}/volume/reader bin/reader", at.display());
    assert_one(&container.read(&volume, "/data/secret"), "/data/secret", "/bin/reader");
    let volume = format!("mount --bind {}/volume bin", at.display());
    assert_one(&container.read(&volume, "/data/secret"), "/data/secret", "/bin/reader");

    // Written in the container: the same bytes, but no longer the image's file.
    let alerts = container.read("cp bin/reader bin/x; mv bin/x bin/reader", "/data/secret");
    assert_one(&alerts, "/data/secret", "/bin/reader");
}

#[test]
fn a_token_alerts_by_every_name_that_it_has_in_a_pod() {
    let policy = fs::read_to_string(root().join("policies/credential-access/service-account-token.yaml")).unwrap();
    let container = Container::new(&policy.replace("name: service-account-token", "name: p"));
    let image = container.machine.at.join("image");
    let generation = "..2026_11_22_10_11_12.3141592653";
    let volume = image.join("run/secrets/kubernetes.io/serviceaccount");
    fs::create_dir_all(volume.join(generation)).unwrap();
    fs::create_dir_all(image.join("var")).unwrap();
    fs::write(volume.join(generation).join("token"), "t").unwrap();
    fs::write(volume.join(generation).join("ca.crt"), "c").unwrap();
    symlink(generation, volume.join("..data")).unwrap();
    symlink("..data/token", volume.join("token")).unwrap();
    symlink("..data/ca.crt", volume.join("ca.crt")).unwrap();
    symlink("/run", image.join("var/run")).unwrap();
    let tail = "secrets/kubernetes.io/serviceaccount";
    let real = format!("/run/{tail}/{generation}/token");
    for name in [
        format!("/var/run/{tail}/token"),
        format!("/run/{tail}/token"),
        real.clone(),
        format!("/run/{tail}/..data/token"),
    ] {
        let alerts = container.read("true", &name);
        assert_one(&alerts, &real, "/bin/reader");
        assert_eq!(alerts[0]["pathwatch"]["pattern"], format!("/var/run/{tail}/token"), "{name}");
    }
    assert_eq!(container.read("true", &format!("/run/{tail}/ca.crt")), Vec::<Value>::new());
}
