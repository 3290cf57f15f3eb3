//! Every open with its outcome, on kernels that allow fexit.
use aya_ebpf::{EbpfContext as _, macros::fexit, programs::FExitContext};
use sensor_ebpf::{Call, Hook, Loss, Part, Section};

use super::open::{base, begin, flag_chroot, put_file};
use crate::{
    filter,
    kernel::{
        FILENAME_NAME, OPEN_FLAGS_LOOKUP_FLAGS, OPEN_FLAGS_OPEN_FLAG, Typed, constant, is_error, load, read,
    },
    maps::{RECORDER, count_loss, next_sequence},
    path::{Depth, put_above, put_near, put_path},
    record::{Builder, Kept, Room, Source, Start},
};

/// -EAGAIN (include/uapi/asm-generic/errno-base.h).
const AGAIN: i32 = -11;
/// O_CREAT (include/uapi/asm-generic/fcntl.h).
const CREAT: u32 = 0o100;

// match-proto: struct file *do_filp_open(int dfd, struct filename *pathname, const struct open_flags *op)
// match-proto: struct file *do_file_open(int dfd, struct filename *pathname, const struct open_flags *op)
#[fexit(function = "do_filp_open")]
fn do_filp_open(ctx: FExitContext) -> i32 {
    let Some(asked) = filter::ask() else { return 0 };
    let (flags, result) = outcome(&ctx);
    if is_final(&ctx, flags, result)
        && filter::wants_open(asked, ctx.arg(3), || name(&ctx), (flags, result))
        && filter::is_foreign(Hook::DoFilpOpen, Part::Exit)
        && filter::admits(Hook::DoFilpOpen)
    {
        // A program of its own: the verifier of 5.10 does not accept both in one.
        // SAFETY: the context is this run's, and does not come back unless there is no such program.
        unsafe { RECORDER.tail_call(&ctx, 0) };
        next_sequence(Hook::DoFilpOpen);
        count_loss(Hook::DoFilpOpen, Loss::Unreadable);
    }
    0
}

// Only reached from the program above.
// match-proto: struct file *do_filp_open(int dfd, struct filename *pathname, const struct open_flags *op)
#[fexit(function = "do_filp_open")]
fn do_filp_open_record(ctx: FExitContext) -> i32 {
    let (flags, result) = outcome(&ctx);
    report(&ctx, flags, result);
    0
}

/// Flags of the open, and zero or a negative errno.
#[inline(always)]
fn outcome(ctx: &FExitContext) -> (u32, i32) {
    // To the verifier the return value is a pointer, from which no errno can be taken ("pointer arithmetic with <<= operator
    // prohibited").
    let result = if is_error(ctx.arg(3)) { returned(ctx) as i32 } else { 0 };
    (load(ctx.arg(2), constant(&OPEN_FLAGS_OPEN_FLAG)), result)
}

/// The name that was asked for: the kernel's own copy.
#[inline(always)]
fn name(ctx: &FExitContext) -> u64 {
    load(ctx.arg(1), constant(&FILENAME_NAME))
}

/// False for a look-up that is done again.
#[inline(always)]
fn is_final(ctx: &FExitContext, flags: u32, result: i32) -> bool {
    result != AGAIN || !is_cached_only(flags, load(ctx.arg(2), constant(&OPEN_FLAGS_LOOKUP_FLAGS)))
}

/// The return value as a plain number.
#[inline(always)]
fn returned(ctx: &FExitContext) -> u64 {
    read(ctx.as_ptr() as u64, 3 * size_of::<u64>())
}

#[inline(always)]
fn report(ctx: &FExitContext, flags: u32, result: i32) -> Option<()> {
    let record = begin(Hook::DoFilpOpen, Call::Open, flags, result)?;
    flag_chroot(record);
    if result == 0 {
        start_at_file(record, ctx.arg(3))
    } else {
        start_at_base(record, ctx, result)
    }
    put_path(record, record.kept().target, Depth::Whole, Room::Last);
    let Kept { name, root, result, .. } = record.kept();
    if root != 0 {
        put_above(record, root, Room::Last);
    }
    if result != 0 {
        // The kernel's own copy: the process cannot change it any more.
        record.put_requested(Source::Kernel(name), Section::Requested);
    }
    record.submit();
    Some(())
}

/// Keeps where the walk goes on.
#[inline(always)]
fn start_at_file(mut record: Builder, file: u64) {
    let place = put_file(&mut record, Typed, file);
    record.keep(Kept::default());
    put_near(record, place, Room::Last);
}

/// Keeps where the requested name starts from, and that name.
#[inline(always)]
fn start_at_base(record: Builder, ctx: &FExitContext, result: i32) {
    let name = name(ctx);
    let target = base(record, Start { dirfd: ctx.arg(0), first: Source::Kernel(name).first() });
    record.keep(Kept { name, target, result: i64::from(result), ..Kept::default() });
}

/// Whether the lookup was to end where it would have had to wait. io_uring tries so first and then has a worker do it;
/// openat2(2) with RESOLVE_CACHED says the same to the process, which has got nothing.
///
/// `LOOKUP_CACHED` of include/linux/namei.h is 0x200000 of older kernels and BIT(9) of newer ones; with the older, that
/// bit is `LOOKUP_CREATE`, which goes with O_CREAT. An open that may create is never tried so.
#[inline(always)]
fn is_cached_only(flags: u32, lookup: u32) -> bool {
    lookup & 0x20_0000 != 0 || lookup & 0x200 != 0 && flags & CREAT == 0
}
