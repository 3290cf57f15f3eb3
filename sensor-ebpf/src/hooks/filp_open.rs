//! Every open with its outcome, on kernels that allow fexit.
use aya_ebpf::{EbpfContext as _, macros::fexit, programs::FExitContext};
use sensor_ebpf::Hook;

use super::open::{base, begin, put_file};
use crate::{
    filter,
    kernel::{FILENAME_NAME, OPEN_FLAGS_OPEN_FLAG, constant, is_error, read},
    path::put_path,
    record::{Kept, Source},
};

// match-proto: struct file *do_filp_open(int dfd, struct filename *pathname, const struct open_flags *op)
// match-proto: struct file *do_file_open(int dfd, struct filename *pathname, const struct open_flags *op)
#[fexit(function = "do_filp_open")]
fn do_filp_open(ctx: FExitContext) -> i32 {
    if filter::wanted() {
        try_do_filp_open(&ctx);
    }
    0
}

#[inline(always)]
fn try_do_filp_open(ctx: &FExitContext) -> Option<()> {
    let dirfd: i32 = ctx.arg(0);
    let filename: u64 = ctx.arg(1);
    let open_flags: u64 = ctx.arg(2);
    // The return value as a plain number: as `ctx.arg(3)` it is a pointer to the verifier, from which no errno can
    // be taken ("pointer arithmetic with <<= operator prohibited").
    let file: u64 = read(ctx.as_ptr() as u64, 3 * size_of::<u64>());
    let flags: u32 = read(open_flags, constant(&OPEN_FLAGS_OPEN_FLAG));
    let result = if is_error(file) { file as i32 } else { 0 };
    let mut record = begin(Hook::DoFilpOpen, flags, result)?;
    let name: u64 = read(filename, constant(&FILENAME_NAME));
    let place =
        if result == 0 { put_file(&mut record, file) } else { base(&mut record, Source::Kernel(name), dirfd) };
    record.keep(Kept { file, name, result: i64::from(result) });
    put_path(record, place);
    record.end_path();
    let Kept { name, result, .. } = record.kept();
    if result != 0 {
        // The kernel's own copy: the process cannot change it any more.
        record.put_requested(Source::Kernel(name));
    }
    record.submit();
    Some(())
}
