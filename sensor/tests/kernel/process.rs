//! What the kernel side tells of processes and cgroups.
use std::{
    fs::{self, File},
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _, process::CommandExt as _},
    path::Path,
    process::{Command, Stdio},
};

use super::watch::{Observed, block, hierarchy, in_each_mode};
use sensor::{
    event::{Args, Name},
    observation::{CgroupMade, Exec, Fork, Identity, Observation},
};

/// This program under another name, which does nothing much: `--list`.
fn program(directory: &Path) -> Command {
    let program = directory.join("program");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let mut command = Command::new(program);
    command.arg("--list").stdout(Stdio::null());
    command
}

fn run(command: &mut Command) -> u32 {
    let mut child = command.spawn().unwrap();
    assert!(child.wait().unwrap().success());
    child.id()
}

fn name(path: &Path) -> Name {
    path.as_os_str().as_bytes().to_vec().into()
}

fn execs(observed: &Observed) -> impl Iterator<Item = &Exec> {
    observed.processes.iter().filter_map(|o| if let Observation::Exec(exec) = o { Some(exec) } else { None })
}

fn only_exec(observed: &Observed, pid: u32) -> &Exec {
    let found: Vec<_> = execs(observed).filter(|exec| exec.process.pid == pid).collect();
    assert_eq!(found.len(), 1, "{found:#?}");
    found[0]
}

#[test]
fn a_process_is_told_with_its_maker_its_program_and_its_end() {
    in_each_mode(|watch, directory| {
        let mut pid = 0;
        let observed = block(watch().during(|| pid = run(&mut program(directory))));
        let of_it: Vec<&Observation> = observed
            .processes
            .iter()
            .filter(|observation| match observation {
                Observation::Fork(Fork { child: process, .. })
                | Observation::Exec(Exec { process, .. })
                | Observation::Exit(process) => process.pid == pid,
                Observation::Open(_)
                | Observation::CgroupMade(_)
                | Observation::CgroupRemoved(_)
                | Observation::Refused(_) => false,
            })
            .collect();
        let [Observation::Fork(fork), Observation::Exec(exec), Observation::Exit(exit)] = of_it[..] else {
            panic!("{of_it:#?}")
        };
        assert_eq!((fork.parent.pid, fork.child, *exit), (std::process::id(), exec.process, exec.process));
        assert_eq!(exec.path, Some(name(&directory.join("program"))));
        assert_eq!(exec.inode, fs::metadata(directory.join("program")).unwrap().ino());
        assert_eq!((exec.cgroup_id, &exec.script, exec.chroot), (fork.cgroup_id, &None, false));
        assert_eq!(exec.cwd, Some(name(&std::env::current_dir().unwrap().canonicalize().unwrap())));
        let open = observed.others.iter().find(|open| open.pid == pid).unwrap();
        assert_eq!((open.start_ns, open.ids.euid), (exec.process.start_ns, Some(0)));
        for (kind, told) in [("mnt", open.mount_ns), ("pid", open.pid_ns), ("user", open.user_ns)] {
            let inode = fs::metadata(format!("/proc/self/ns/{kind}")).unwrap().ino();
            assert_eq!(told.map(u64::from), Some(inode), "{kind}");
        }
        assert_eq!(Some(u64::from(exec.mount_ns)), open.mount_ns.map(u64::from));
    });
}

#[test]
fn arguments_arrive_as_they_were_given_and_are_cut_with_a_mark() {
    in_each_mode(|watch, directory| {
        let long = "x".repeat(5000);
        let odd = std::ffi::OsStr::from_bytes(b"\xff\n");
        let all = [Vec::new(), vec![odd], vec![odd, "".as_ref(), "".as_ref()], vec![long.as_ref()]];
        for more in all {
            let mut pid = 0;
            // Names of tests to list: there are none of those.
            let observed = block(watch().during(|| {
                // What it makes of such arguments is its own business.
                let mut child = program(directory).args(&more).stderr(Stdio::null()).spawn().unwrap();
                child.wait().unwrap();
                pid = child.id();
            }));
            let exec = only_exec(&observed, pid);
            let given = [name(&directory.join("program")), "--list".into()]
                .into_iter()
                .chain(more.iter().map(|arg| arg.as_bytes().to_vec().into()))
                .flat_map(|arg: Name| [arg.as_bytes(), b"\0"].concat())
                .collect::<Vec<_>>();
            assert_eq!((exec.args.clone(), exec.args_cut), (Args::new(&given).cut(4096), given.len() > 4096));
        }
    });
}

#[test]
fn a_script_is_told_beside_its_interpreter_and_a_chroot_is_marked() {
    in_each_mode(|watch, directory| {
        program(directory);
        let interpreter = directory.join("program");
        for (text, name) in [
            (format!("#!{} --list\n", interpreter.display()), "script"),
            ("#!./program --list\n".into(), "relative"),
        ] {
            fs::write(directory.join(name), text).unwrap();
            fs::set_permissions(directory.join(name), std::os::unix::fs::PermissionsExt::from_mode(0o755))
                .unwrap();
        }
        for (called, want) in
            [("./script", Some("script")), ("././relative", Some("relative")), ("./x/../script", None)]
        {
            fs::create_dir_all(directory.join("x")).unwrap();
            let mut pid = 0;
            let mut command = Command::new(called);
            command.current_dir(directory).stdout(Stdio::null());
            let observed = block(watch().during(|| pid = run(&mut command)));
            let exec = only_exec(&observed, pid);
            assert_eq!(exec.path, Some(name(&interpreter)), "{called}");
            assert_eq!(exec.script, want.map(|script| name(&directory.join(script))), "{called}");
            assert_eq!(exec.cwd, Some(name(directory)));
        }
        let mut chrooted = Command::new("/program");
        chrooted.arg("--list").stdout(Stdio::null());
        let root = directory.to_owned();
        let enter = move || Ok(rustix::process::chroot(&root)?);
        // SAFETY: between fork and exec it makes one system call.
        unsafe { chrooted.pre_exec(enter) };
        let mut pid = 0;
        let observed = block(watch().during(|| pid = run(&mut chrooted)));
        let exec = only_exec(&observed, pid);
        assert!(exec.chroot);
        assert_eq!(exec.path, Some(name(&interpreter)));
    });
}

#[test]
fn a_process_of_many_threads_ends_once() {
    in_each_mode(|watch, _| {
        let observed = block(watch().during(|| {
            let threads: Vec<_> = (0..8).map(|_| std::thread::spawn(|| ())).collect();
            threads.into_iter().for_each(|thread| thread.join().unwrap());
        }));
        let own = std::process::id();
        let told: Vec<_> = observed
            .processes
            .iter()
            .filter(|observation| match observation {
                Observation::Exit(process) => process.pid == own,
                Observation::Fork(fork) => fork.child.pid == own,
                Observation::Open(_)
                | Observation::Exec(_)
                | Observation::CgroupMade(_)
                | Observation::CgroupRemoved(_)
                | Observation::Refused(_) => false,
            })
            .collect();
        assert!(told.is_empty(), "a thread is no process: {told:?}");
    });
}

#[test]
fn ids_are_those_at_the_time_of_the_open() {
    in_each_mode(|watch, directory| {
        let file = directory.join("f");
        fs::write(&file, "").unwrap();
        fs::set_permissions(directory, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let user = |id| Some(rustix::thread::Uid::from_raw(id));
        let change = || {
            // This thread's alone, as the system call has it; the saved id lets it come back.
            let (root, other) = (user(0).unwrap(), user(4711).unwrap());
            rustix::thread::set_thread_res_uid(root, other, root).unwrap();
            drop(File::open(&file).unwrap());
            rustix::thread::set_thread_res_uid(root, root, root).unwrap();
        };
        let observed = block(watch().during(change));
        let ids = observed.only_below(directory).ids;
        assert_eq!((ids.uid, ids.euid, ids.suid, ids.fsuid), (0, Some(4711), Some(0), Some(4711)));
        assert_eq!((ids.gid, ids.egid, ids.sgid, ids.fsgid), (0, Some(0), Some(0), Some(0)));
    });
}

#[test]
fn a_process_in_a_pid_namespace_has_both_its_numbers() {
    in_each_mode(|watch, directory| {
        let mut pid = 0;
        let mut command = program(directory);
        let observed = block(watch().during(|| {
            let spawn = std::thread::scope(|scope| {
                scope
                    .spawn(|| {
                        // SAFETY: it concerns this thread's children alone.
                        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWPID) }.unwrap();
                        run(&mut command)
                    })
                    .join()
                    .unwrap()
            });
            pid = spawn;
        }));
        let open = observed.others.iter().find(|open| open.pid == pid).unwrap();
        assert_eq!((open.initial_pid, open.own_pid), (None, Some(1)));
        let own = fs::metadata("/proc/self/ns/pid").unwrap().ino();
        assert!(open.pid_ns.is_some_and(|inode| u64::from(inode) != own));
        assert_eq!(only_exec(&observed, pid).process, Identity { pid, start_ns: open.start_ns });
    });
}

#[test]
fn a_cgroup_is_told_at_its_birth_and_its_end_with_the_id_that_opens_carry() {
    let hierarchy = hierarchy();
    println!("hierarchy: {hierarchy:?}");
    in_each_mode(|watch, directory| {
        let file = directory.join("f");
        fs::write(&file, "").unwrap();
        let outer = hierarchy.root.join(format!("pathwatch-test-{}", std::process::id()));
        // As long as the kernel allows.
        let inner = outer.join("n".repeat(255));
        let (mut ids, mut pid) = ([0; 2], 0);
        let observed = block(watch().during(|| {
            fs::create_dir(&outer).unwrap();
            fs::create_dir(&inner).unwrap();
            ids = [&outer, &inner].map(|cgroup| fs::metadata(cgroup).unwrap().ino());
            let mut inside = Command::new("/proc/self/exe");
            inside.arg("--list").stdout(Stdio::null());
            let procs = inner.join("cgroup.procs");
            let enter = move || fs::write(&procs, "0");
            // SAFETY: between fork and exec it opens a file and writes to it, which are system calls.
            unsafe { inside.pre_exec(enter) };
            pid = run(&mut inside);
            fs::remove_dir(&inner).unwrap();
            fs::remove_dir(&outer).unwrap();
        }));
        let told: Vec<&Observation> = observed
            .processes
            .iter()
            .filter(|observation| match observation {
                Observation::CgroupMade(CgroupMade { id, .. }) | Observation::CgroupRemoved(id) => {
                    ids.contains(id)
                }
                Observation::Open(_)
                | Observation::Exec(_)
                | Observation::Fork(_)
                | Observation::Exit(_)
                | Observation::Refused(_) => false,
            })
            .collect();
        let root = fs::metadata(&hierarchy.root).unwrap().ino();
        let table = fs::read("/proc/self/cgroup").unwrap();
        let own = hierarchy.path_in(&table).unwrap();
        let own = hierarchy.root.join(std::ffi::OsStr::from_bytes(own.strip_prefix(b"/").unwrap()));
        let maker = fs::metadata(own).unwrap().ino();
        let [
            Observation::CgroupMade(first),
            Observation::CgroupMade(second),
            Observation::CgroupRemoved(gone),
            Observation::CgroupRemoved(last),
        ] = told[..]
        else {
            panic!("{told:#?}")
        };
        assert_eq!((first.parent, &first.name), (root, &name(Path::new(outer.file_name().unwrap()))));
        assert_eq!((second.parent, second.name.as_bytes().len()), (ids[0], 255));
        assert_eq!((first.maker, first.by.pid), (maker, std::process::id()));
        assert_eq!([*last, *gone], ids);
        assert_eq!(only_exec(&observed, pid).cgroup_id, ids[1]);
        let opens: Vec<_> = observed.others.iter().filter(|open| open.pid == pid).collect();
        assert!(!opens.is_empty() && opens.iter().any(|open| open.cgroup_id == ids[1]), "{opens:#?}");
    });
}
