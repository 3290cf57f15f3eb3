//! Decides, before anything is read, whether an open is worth a record.
use aya_ebpf::helpers::bpf_get_current_pid_tgid;

use crate::kernel::{SELF_TGID, constant};

/// False for the sensor's own opens: reporting them would feed on itself.
#[inline(always)]
pub(crate) fn wanted() -> bool {
    (bpf_get_current_pid_tgid() >> 32) as usize != constant(&SELF_TGID)
}
