//! The program that sees opens is attached as long as anything is wanted of any: what nobody wants costs nothing.
use std::sync::{Arc, Mutex, PoisonError};

use aya::{Ebpf, util::KernelVersion};
use sensor_ebpf::table::Wants;

use super::{
    Error,
    hooks::{self, Link},
};

/// The programs, until capture ends.
#[derive(Clone)]
pub(super) struct Programs(Arc<Mutex<Option<Ebpf>>>);

impl Programs {
    pub(super) fn new(bpf: Ebpf) -> Self {
        Self(Arc::new(Mutex::new(Some(bpf))))
    }

    /// Runs `act` with the programs; None if they are no more.
    pub(super) fn with<T>(&self, act: impl FnOnce(&mut Ebpf) -> T) -> Option<T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).as_mut().map(act)
    }

    /// Detaches and unloads them all.
    pub(super) fn end(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// A program that is attached.
pub(super) struct Attached {
    pub(super) name: &'static str,
    pub(super) link: Link,
    /// What it sees.
    pub(super) classes: u8,
    /// It can be attached again after it was detached.
    pub(super) returns: bool,
}

/// Whether a program at a function of the kernel can be attached again: from 5.13 on (bpf_tracing_prog_attach() in
/// kernel/bpf/syscall.c).
pub(super) fn tracing_returns() -> bool {
    KernelVersion::current().is_ok_and(|version| version >= KernelVersion::new(5, 13, 0))
}

/// The one that sees opens.
pub(super) struct Opens {
    programs: Programs,
    name: &'static str,
    /// None while it is not attached.
    link: Option<Link>,
    classes: u8,
    returns: bool,
}

impl Opens {
    pub(super) fn new(programs: Programs, Attached { name, link, classes, returns }: Attached) -> Self {
        Self { programs, name, link: Some(link), classes, returns }
    }

    /// Attaches it, if `wants` wants something of what it sees.
    pub(super) fn attach_for(&mut self, wants: Wants) -> Result<(), Error> {
        if self.link.is_none() && wants.any(self.classes) {
            let attach = |bpf: &mut Ebpf| bpf.program_mut(self.name).map(hooks::attach_again);
            let Some(Some(attached)) = self.programs.with(attach) else { return Ok(()) };
            self.link = Some(attached.map_err(|why| Error::Load(self.name, why.into()))?);
            tracing::info!(program = self.name, "attached: a policy wants what it sees");
        }
        Ok(())
    }

    /// Detaches it, if `wants` wants nothing of what it sees.
    pub(super) fn detach_for(&mut self, wants: Wants) -> Result<(), Error> {
        if self.returns
            && !wants.any(self.classes)
            && let Some(link) = self.link.take()
        {
            let detach = |bpf: &mut Ebpf| bpf.program_mut(self.name).map(|program| hooks::detach(program, link));
            if let Some(Some(detached)) = self.programs.with(detach) {
                detached.map_err(|why| Error::Load(self.name, why.into()))?;
                tracing::info!(program = self.name, "detached: no policy wants what it sees");
            }
        }
        Ok(())
    }
}
