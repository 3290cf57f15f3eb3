//! Why capture cannot start, with the remedy.
use super::btf;

/// Why capture cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Capabilities are missing.
    #[error(
        "not permitted to load eBPF programs: needs CAP_BPF and CAP_PERFMON; run as root, for example with sudo"
    )]
    NotPermitted,
    /// The kernel does not describe itself.
    #[error(
        "this kernel has no type information at {}: Pathwatch needs a kernel of 5.10 or later built with CONFIG_DEBUG_INFO_BTF=y, as all current distributions' are",
        btf::VMLINUX
    )]
    NoBtf,
    /// The kernel's description of itself cannot be parsed.
    #[error(
        "the kernel's type information at {} cannot be read: please report this kernel's version",
        btf::VMLINUX
    )]
    BadBtf,
    /// A structure has lost a member.
    #[error("this kernel's struct {0} has no member {1}: please report its version")]
    MissingMember(&'static str, String),
    /// None of the known functions exists.
    #[error("this kernel has no function {0} as it is known; please report its version")]
    MissingFunction(String),
    /// The compiler has put the function into its callers.
    #[error(
        "the kernel has {0} attached and never runs it: set capture.mode to tracepoint, and please report its version"
    )]
    Silent(&'static str),
    /// The embedded object lacks a program: a broken build.
    #[error("the embedded kernel object has no {0}: this binary is damaged")]
    MissingProgram(&'static str),
    /// The kernel refused.
    #[error("the kernel refuses to load {0}: {cause}", cause = .1.root_cause())]
    Load(&'static str, #[source] anyhow::Error),
    /// A file of the kernel cannot be read.
    #[error("cannot read {0}: {1}")]
    Io(String, #[source] std::io::Error),
}

impl Error {
    /// Whether somebody would have to permit it (EPERM, EACCES).
    #[must_use]
    pub fn is_not_permitted(&self) -> bool {
        let refused = |why: &std::io::Error| why.kind() == std::io::ErrorKind::PermissionDenied;
        match self {
            Self::NotPermitted => true,
            Self::Load(_, why) => why.root_cause().downcast_ref().is_some_and(refused),
            Self::Io(_, why) => refused(why),
            Self::NoBtf
            | Self::BadBtf
            | Self::MissingMember(..)
            | Self::MissingFunction(_)
            | Self::Silent(_)
            | Self::MissingProgram(_) => false,
        }
    }
}
