//! The programs of the kernel side and the functions of the kernel that they rely on.
//!
//! A function is known by its prototype, argument by argument: one that has changed in a way that nobody has looked at is
//! no function to read arguments from.
use aya::{
    Btf, Ebpf,
    maps::{MapData, ProgramArray},
    programs::{
        BtfTracePoint, FEntry, FExit, Program, ProgramError, ProgramInfo, fentry::FEntryLinkId,
        fexit::FExitLinkId, tp_btf::BtfTracePointLinkId,
    },
};
use sensor_ebpf::{Hook, Part};

use super::{Error, btf::Types};
use crate::event::Operation;

/// One program and where it goes.
pub(super) struct Spec {
    /// Its name in the object.
    pub(super) program: &'static str,
    /// Whose record it makes, and what of it.
    pub(super) hook: Hook,
    pub(super) part: Part,
    /// Prototypes of the functions that it may be attached to, the newest kernel's first.
    functions: &'static [&'static str],
}

/// What cannot be seen without a hook: in words, and as policies have it if that is all there is to see of it. None of the
/// hook without which there is no sensor.
pub(super) fn needed_for(hook: Hook) -> Option<(&'static str, Option<Operation>)> {
    Some(match hook {
        Hook::DoHandleOpen => ("open_by_handle_at(2)", None),
        Hook::VfsTruncate => ("truncate(2)", Some(Operation::Truncate)),
        Hook::SysTruncate => ("truncate(2) of what is not there", None),
        Hook::DoRenameat2 => ("rename(2)", Some(Operation::Rename)),
        Hook::DoLinkat => ("link(2)", Some(Operation::Link)),
        Hook::DoUnlinkat => ("unlink(2)", Some(Operation::Delete)),
        Hook::DoRmdir => ("rmdir(2)", None),
        Hook::DoFilpOpen
        | Hook::SysExit
        | Hook::SchedProcessExec
        | Hook::SchedProcessFork
        | Hook::SchedProcessExit
        | Hook::CgroupMkdir
        | Hook::CgroupRmdir => return None,
    })
}

const RENAME: &[&str] = &[
    "int filename_renameat2(int olddfd, struct filename *from, int newdfd, struct filename *to, unsigned int flags)",
    "int do_renameat2(int olddfd, struct filename *from, int newdfd, struct filename *to, unsigned int flags)",
];
/// The last takes its names from user memory.
const LINK: &[&str] = &[
    "int filename_linkat(int olddfd, struct filename *old, int newdfd, struct filename *new, int flags)",
    "int do_linkat(int olddfd, struct filename *old, int newdfd, struct filename *new, int flags)",
    "int do_linkat(int olddfd, const char *oldname, int newdfd, const char *newname, int flags)",
];
const UNLINK: &[&str] = &[
    "int filename_unlinkat(int dfd, struct filename *name)",
    "int do_unlinkat(int dfd, struct filename *name)",
    "long do_unlinkat(int dfd, struct filename *name)",
];
const RMDIR: &[&str] = &[
    "int filename_rmdir(int dfd, struct filename *name)",
    "int do_rmdir(int dfd, struct filename *name)",
    "long do_rmdir(int dfd, struct filename *name)",
];
const TRUNCATE: &[&str] = &[
    "long __x64_sys_truncate(const struct pt_regs *regs)",
    "long __arm64_sys_truncate(const struct pt_regs *regs)",
];
const HANDLE: &[&str] = &["long do_handle_open(int mountdirfd, struct file_handle *ufh, int open_flag)"];

/// All programs that need a function of the kernel, in the order in which they are attached: ends of calls before their
/// beginnings, so that no call is kept whose end is not seen.
pub(super) const SPECS: &[Spec] = &[
    spec(
        "do_filp_open",
        Hook::DoFilpOpen,
        Part::Exit,
        &[
            "struct file *do_file_open(int dfd, struct filename *pathname, const struct open_flags *op)",
            "struct file *do_filp_open(int dfd, struct filename *pathname, const struct open_flags *op)",
        ],
    ),
    spec("do_renameat2", Hook::DoRenameat2, Part::Exit, RENAME),
    spec(
        "security_path_rename",
        Hook::DoRenameat2,
        Part::Found,
        &[
            "int security_path_rename(const struct path *old_dir, struct dentry *old_dentry, const struct path *new_dir, struct dentry *new_dentry, unsigned int flags)",
        ],
    ),
    spec("do_renameat2_entry", Hook::DoRenameat2, Part::Entry, RENAME),
    spec("do_linkat", Hook::DoLinkat, Part::Exit, LINK),
    spec(
        "security_path_link",
        Hook::DoLinkat,
        Part::Found,
        &[
            "int security_path_link(struct dentry *old_dentry, const struct path *new_dir, struct dentry *new_dentry)",
        ],
    ),
    spec("do_linkat_entry", Hook::DoLinkat, Part::Entry, LINK),
    spec("do_unlinkat", Hook::DoUnlinkat, Part::Exit, UNLINK),
    spec(
        "security_path_unlink",
        Hook::DoUnlinkat,
        Part::Found,
        &["int security_path_unlink(const struct path *dir, struct dentry *dentry)"],
    ),
    spec("do_unlinkat_entry", Hook::DoUnlinkat, Part::Entry, UNLINK),
    spec("do_rmdir", Hook::DoRmdir, Part::Exit, RMDIR),
    spec(
        "security_path_rmdir",
        Hook::DoRmdir,
        Part::Found,
        &["int security_path_rmdir(const struct path *dir, struct dentry *dentry)"],
    ),
    spec("do_rmdir_entry", Hook::DoRmdir, Part::Entry, RMDIR),
    spec(
        "vfs_truncate",
        Hook::VfsTruncate,
        Part::Exit,
        &[
            "int vfs_truncate(const struct path *path, loff_t length)",
            "long vfs_truncate(const struct path *path, loff_t length)",
        ],
    ),
    spec("sys_truncate", Hook::SysTruncate, Part::Exit, TRUNCATE),
    spec("sys_truncate_entry", Hook::SysTruncate, Part::Entry, TRUNCATE),
    spec("do_handle_open", Hook::DoHandleOpen, Part::Exit, HANDLE),
    spec(
        "do_file_open_root",
        Hook::DoHandleOpen,
        Part::Found,
        &[
            "struct file *do_file_open_root(const struct path *root, const char *name, const struct open_flags *op)",
            "struct file *do_file_open_root(struct dentry *dentry, struct vfsmount *mnt, const char *name, const struct open_flags *op)",
        ],
    ),
    spec("do_handle_open_entry", Hook::DoHandleOpen, Part::Entry, HANDLE),
];

const fn spec(program: &'static str, hook: Hook, part: Part, functions: &'static [&'static str]) -> Spec {
    Spec { program, hook, part, functions }
}

/// Name of the function that a prototype is of.
fn function_of(prototype: &str) -> Option<&str> {
    prototype.split('(').next()?.rsplit([' ', '*']).next()
}

/// The function that this kernel has.
fn found(types: &Types, functions: &'static [&'static str]) -> Option<&'static str> {
    functions.iter().copied().find(|prototype| {
        function_of(prototype).and_then(|name| types.prototype(name)).as_deref() == Some(prototype)
    })
}

/// What the kernel side must know of this kernel's functions.
pub(super) fn globals(types: &Types) -> [(&'static str, u32); 3] {
    let user = found(types, LINK).is_some_and(|prototype| prototype.contains("const char"));
    let root = SPECS.iter().find(|spec| spec.program == "do_file_open_root");
    let prototype = root.and_then(|spec| found(types, spec.functions)).unwrap_or_default();
    let task = types.prototype("bpf_get_current_task_btf").is_some();
    [
        ("HAS_TASK_BTF", task.into()),
        ("LINK_NAMES_IN_USER", user.into()),
        ("FILE_OPEN_ROOT_ARGS", prototype.matches(',').count() as u32 + 1),
    ]
}

/// Prototypes of the function by which every dentry gets another name or another parent.
const MOVE: &[&str] = &["void __d_move(struct dentry *dentry, struct dentry *target, bool exchange)"];

/// Prototypes of the functions by which dentries are freed: those with a short name, and those with a long one.
const FREE: &[&str] = &["void __d_free(struct callback_head *head)"];
const FREE_EXTERNAL: &[&str] = &["void __d_free_external(struct callback_head *head)"];

/// A program that is attached, by what it is detached with.
pub(super) enum Link {
    Entry(FEntryLinkId),
    Exit(FExitLinkId),
    Tracing(BtfTracePointLinkId),
}

/// Attaches a program that is loaded.
pub(super) fn attach_again(program: &mut Program) -> Result<Link, ProgramError> {
    if let Program::FEntry(program) = program {
        program.attach().map(Link::Entry)
    } else if let Program::FExit(program) = program {
        program.attach().map(Link::Exit)
    } else {
        let program: &mut BtfTracePoint = program.try_into()?;
        program.attach().map(Link::Tracing)
    }
}

/// Detaches it; it stays loaded.
pub(super) fn detach(program: &mut Program, link: Link) -> Result<(), ProgramError> {
    match link {
        Link::Entry(link) => <&mut FEntry>::try_from(program)?.detach(link),
        Link::Exit(link) => <&mut FExit>::try_from(program)?.detach(link),
        Link::Tracing(link) => {
            let program: &mut BtfTracePoint = program.try_into()?;
            program.detach(link)
        }
    }
}

/// Loads and attaches one program.
pub(super) fn attach(spec: &Spec, bpf: &mut Ebpf, types: &Types, btf: &Btf) -> Result<Link, Error> {
    attach_to(spec.program, spec.functions, bpf, types, btf)
}

/// The same of those that tell the filter of directories that are moved or freed; the end of a move first, so that none begins
/// without one.
pub(super) fn attach_moves(bpf: &mut Ebpf, types: &Types, btf: &Btf) -> Result<(), Error> {
    let programs =
        [("d_free", FREE), ("d_free_external", FREE_EXTERNAL), ("d_move", MOVE), ("d_move_entry", MOVE)];
    programs
        .into_iter()
        .try_for_each(|(program, functions)| attach_to(program, functions, bpf, types, btf).map(drop))
}

/// Prototypes of the function by which processes change their cgroups.
const ATTACH: &[&str] =
    &["int cgroup_attach_task(struct cgroup *dst_cgrp, struct task_struct *leader, bool threadgroup)"];

/// The same of the one that tells the filter of processes that change their cgroups.
pub(super) fn attach_strays(bpf: &mut Ebpf, types: &Types, btf: &Btf) -> Result<(), Error> {
    attach_to("cgroup_attach_task", ATTACH, bpf, types, btf).map(drop)
}

fn attach_to(
    name: &'static str,
    functions: &'static [&'static str],
    bpf: &mut Ebpf,
    types: &Types,
    btf: &Btf,
) -> Result<Link, Error> {
    let function = found(types, functions).and_then(function_of).ok_or_else(|| {
        let names = functions.iter().filter_map(|prototype| function_of(prototype)).collect::<Vec<_>>();
        Error::MissingFunction(names.join(" or "))
    })?;
    let load = |why: ProgramError| Error::Load(name, why.into());
    let program = bpf.program_mut(name).ok_or(Error::MissingProgram(name))?;
    if let Program::FEntry(program) = program {
        program.load(function, btf).map_err(load)?;
    } else {
        let program: &mut FExit = program.try_into().map_err(load)?;
        program.load(function, btf).map_err(load)?;
    }
    tell_size(name, program.info());
    attach_again(program).map_err(load)
}

/// Loads the program that makes the record of an open, and puts it where the one that decides finds it. The kernel empties
/// that place when it is dropped.
pub(super) fn load_recorder(bpf: &mut Ebpf, types: &Types, btf: &Btf) -> Result<ProgramArray<MapData>, Error> {
    const NAME: &str = "do_filp_open_record";
    let failed = |why: anyhow::Error| Error::Load(NAME, why);
    let functions = SPECS.iter().find(|spec| spec.hook == Hook::DoFilpOpen).map_or(&[][..], |spec| spec.functions);
    let function = found(types, functions).and_then(function_of);
    let function = function.ok_or_else(|| Error::MissingFunction("do_filp_open".to_owned()))?;
    let Some(Program::FExit(program)) = bpf.program_mut(NAME) else { return Err(Error::MissingProgram(NAME)) };
    program.load(function, btf).map_err(|why| failed(why.into()))?;
    tell_size(NAME, program.info());
    let program = program.fd().map_err(|why| failed(why.into()))?.try_clone().map_err(|why| failed(why.into()))?;
    let map = bpf.take_map("RECORDER").ok_or(Error::MissingProgram("RECORDER"))?;
    let mut programs = ProgramArray::try_from(map).map_err(|why| failed(why.into()))?;
    programs.set(0, &program, 0).map_err(|why| failed(why.into()))?;
    Ok(programs)
}

/// How much the verifier looked at, from 5.16 on; it gives up after a million instructions.
pub(super) fn tell_size(name: &str, info: Result<ProgramInfo, ProgramError>) {
    let instructions = info.ok().and_then(|info| info.verified_instruction_count());
    tracing::debug!(program = name, ?instructions, "verified");
}
