//! Decides, before anything is read, whether what happens is worth a record.
use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use sensor_ebpf::{Hook, Part};

use crate::{
    kernel::{REPORT_SELF, SELF_TGID, constant},
    maps::count_fired,
};

/// False for what the sensor does itself: reporting it would feed on itself. That it came by here is counted, which
/// shows that the program is not only attached but runs.
#[inline(always)]
pub(crate) fn wanted(hook: Hook, part: Part) -> bool {
    if (bpf_get_current_pid_tgid() >> 32) as usize != constant(&SELF_TGID) {
        return true;
    }
    count_fired(hook, part);
    constant(&REPORT_SELF) != 0
}
