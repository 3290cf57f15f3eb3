//! Everything that outlives one run of a program.
use core::cell::{Cell, UnsafeCell};

use aya_ebpf::{
    helpers::bpf_get_current_pid_tgid,
    macros::map,
    maps::{Array, HashMap, LruHashMap, LruPerCpuHashMap, PerCpuArray, ProgramArray, RingBuf},
};
use sensor_ebpf::{
    HOOKS, Hook, LOSSES as LOSS_REASONS, Loss, PARTS, Part,
    cgroups::Cgroups,
    decide::{REASONS, Reason, Remembered},
    table::{CGROUPS, SLOTS, State, TABLE, Table, Wants, place_of},
};

use crate::record::Scratch;

/// Records on their way to user space. The loader sets the size.
#[map]
pub(crate) static EVENTS: RingBuf = RingBuf::with_byte_size(8 << 20, 0);

/// Whether there is room for what processes do: they may fill half of the ring, for a storm of them must not cost anybody's opens a
/// record. If there is none, what would have been recorded is numbered and counted as lost.
#[inline(always)]
pub(crate) fn has_room(hook: Hook) -> bool {
    // BPF_RB_AVAIL_DATA and BPF_RB_RING_SIZE of include/uapi/linux/bpf.h.
    let (filled, size) = (EVENTS.query(0), EVENTS.query(1));
    if filled <= size / 2 {
        return true;
    }
    next_sequence(hook);
    count_loss(hook, Loss::RingFull);
    false
}

/// Records given up, by `hook * LOSS_REASONS + reason`. Each program adds only to slots of its own, so that
/// another program that interrupts it on the same CPU cannot swallow an increment.
#[map]
static LOSSES: PerCpuArray<u64> = PerCpuArray::with_max_entries((HOOKS * LOSS_REASONS) as u32, 0);

/// Last sequence number given out, by hook; one slot a program for the same reason.
#[map]
static SEQUENCES: PerCpuArray<u64> = PerCpuArray::with_max_entries(HOOKS as u32, 0);

/// How often each program ran for the sensor itself, by `hook * PARTS + part`.
#[map]
static FIRED: PerCpuArray<u64> = PerCpuArray::with_max_entries((HOOKS * PARTS) as u32, 0);

// One scratch a program: programs run with preemption on, and another program may run in the middle of this
// one on the same CPU. The same program cannot: the kernel skips it (5.12 and later) or disables preemption.
#[map]
static SCRATCH_DO_FILP_OPEN: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);
#[map]
static SCRATCH_SYS_EXIT: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);
#[map]
static SCRATCH_VFS_TRUNCATE: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);
#[map]
static SCRATCH_SCHED_PROCESS_EXEC: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

/// Most calls that may be under way at a time between the two ends of which something is kept.
const CALLS: u32 = 1024;
/// `BPF_F_NO_PREALLOC` of include/uapi/linux/bpf.h: memory is taken when it is needed.
const NO_PREALLOC: u32 = 1;
/// `BPF_NOEXIST` of the same.
const NO_EXIST: u64 = 1;

/// Records of calls under way, by thread: a thread is in one such call at a time.
#[map]
static CALLS_UNDER_WAY: HashMap<u64, Scratch> = HashMap::with_max_entries(CALLS, NO_PREALLOC);
/// What such a record begins as; nobody writes it. The stack has no room for one.
#[map]
static EMPTY: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

/// The program that makes a record of what passed.
#[map]
pub(crate) static RECORDER: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// What policies want: the table in use and the one before, which becomes the next.
#[map]
static FILTER: Array<Table> = Array::with_max_entries(2, 0);
/// Which table that is. Sections like this one are maps whose address programs know: without a look-up. User space has it by
/// the section's name, and writes it.
#[unsafe(no_mangle)]
#[unsafe(link_section = ".data.filter")]
static FILTER_STATE: State = State::NEW;
/// Moves of directories that have begun.
#[unsafe(no_mangle)]
#[unsafe(link_section = ".data.moves")]
static MOVES_BEGUN: Word = Word::new();
/// How many had when the last one was over.
#[unsafe(no_mangle)]
#[unsafe(link_section = ".data.moves")]
static MOVES_ENDED: Word = Word::new();
/// Dentries that have been freed, by their places.
#[unsafe(no_mangle)]
#[unsafe(link_section = ".data.deaths")]
static DEATHS: Shared<[Cell<u32>; SLOTS]> = Shared([const { Cell::new(0) }; SLOTS]);
/// What is wanted of the processes in each cgroup: what is in use, and what was before, which becomes the next.
#[unsafe(no_mangle)]
#[unsafe(link_section = ".data.even")]
static CGROUPS_EVEN: Shared<Cgroups> = Shared(Cgroups::new());
/// The other of the two.
#[unsafe(no_mangle)]
#[unsafe(link_section = ".data.odd")]
static CGROUPS_ODD: Shared<Cgroups> = Shared(Cgroups::new());
/// Not zero: a cgroup was to be noted in [`STRAYS`], and there was no room.
#[unsafe(no_mangle)]
#[unsafe(link_section = ".data.strays")]
static STRAYS_LOST: Word = Word::new();
/// Cgroups that processes may have come to from a container, so that not only the policies of where they are speak of them.
#[map]
static STRAYS: HashMap<u64, u8> = HashMap::with_max_entries(1 << 13, NO_PREALLOC);
/// Opens that passed the filter, by [`Reason`].
#[map]
static PASSED: PerCpuArray<u64> = PerCpuArray::with_max_entries(REASONS as u32, 0);

/// Cgroups whose shares are counted; of more, those that were quiet longest begin anew.
const SHARES_LEN: u32 = 4096;
/// When cgroups, by their ids, have all of their share again.
#[map]
static SHARES: LruHashMap<u64, u64> = LruHashMap::with_max_entries(SHARES_LEN, 0);
/// How many records they were refused.
#[map]
static REFUSED: LruPerCpuHashMap<u64, u64> = LruPerCpuHashMap::with_max_entries(SHARES_LEN, 0);

/// Directories of which a CPU remembers what they mean to the filter: a power of two.
const REMEMBERED_LEN: u32 = 1024;
#[map]
static REMEMBERED: PerCpuArray<[u64; size_of::<Remembered>() / 8]> =
    PerCpuArray::with_max_entries(REMEMBERED_LEN, 0);

/// A word that programs on several CPUs read and write. The compiler knows no atomic load for this machine; an aligned one is.
struct Word(UnsafeCell<u64>);

// SAFETY: it is only ever read and written whole.
unsafe impl Sync for Word {}

impl Word {
    const fn new() -> Self {
        Self(UnsafeCell::new(0))
    }

    #[inline(always)]
    fn load(&self) -> u64 {
        // SAFETY: a cell is valid to read; volatile, because another CPU may write it.
        unsafe { self.0.get().read_volatile() }
    }

    #[inline(always)]
    fn store(&self, value: u64) {
        // SAFETY: a cell is valid to write, and no reference to what is in it is ever made.
        unsafe { self.0.get().write_volatile(value) };
    }
}

/// What programs on several CPUs use, in cells.
struct Shared<T>(T);

// SAFETY: programs on other CPUs, and user space, race for aligned cells only, each of which one instruction reads or writes.
unsafe impl<T> Sync for Shared<T> {}

/// [`State::swaps`].
#[inline(always)]
pub(crate) fn filter_swaps() -> u64 {
    // SAFETY: a static is valid to read; volatile, because user space writes it meanwhile.
    unsafe { (&raw const FILTER_STATE.swaps).read_volatile() }
}

/// [`State::epoch`].
#[inline(always)]
pub(crate) fn filter_epoch() -> u64 {
    // SAFETY: as above.
    unsafe { (&raw const FILTER_STATE.epoch).read_volatile() }
}

/// What is wanted after so many swaps.
#[inline(always)]
pub(crate) fn filter_wants(swaps: u64) -> Wants {
    let [even, odd] = &FILTER_STATE.wants;
    // SAFETY: as above; any bytes are a value, and it is aligned as one word and read by one instruction.
    unsafe { core::ptr::from_ref(if swaps & TABLE == 0 { even } else { odd }).read_volatile() }
}

/// Cgroups after so many swaps.
#[inline(always)]
pub(crate) fn cgroups(swaps: u64) -> &'static Cgroups {
    if swaps & CGROUPS == 0 { &CGROUPS_EVEN.0 } else { &CGROUPS_ODD.0 }
}

/// A process may come to this cgroup from a container.
#[inline(always)]
pub(crate) fn stray(cgroup: u64) {
    // First it is noted, for user space would put it back.
    if STRAYS.insert(cgroup, 1, 0).is_err() {
        STRAYS_LOST.store(1);
    }
    CGROUPS_EVEN.0.strike(cgroup);
    CGROUPS_ODD.0.strike(cgroup);
}

/// Whether one has.
#[inline(always)]
pub(crate) fn is_stray(cgroup: u64) -> bool {
    STRAYS.get_ptr(cgroup).is_some()
}

/// The cgroup is gone.
#[inline(always)]
pub(crate) fn forget_stray(cgroup: u64) {
    // Most never were.
    STRAYS.remove(cgroup).ok();
}

/// The table after so many swaps.
#[inline(always)]
pub(crate) fn filter_table(swaps: u64) -> Option<&'static Table> {
    FILTER.get((swaps & TABLE) as u32)
}

/// How often a directory has been moved; None while one is.
#[inline(always)]
pub(crate) fn moves() -> Option<u64> {
    let begun = MOVES_BEGUN.load();
    (begun == MOVES_ENDED.load()).then_some(begun)
}

/// A directory is going to be moved. The kernel has one move at a time.
#[inline(always)]
pub(crate) fn begin_move() {
    MOVES_BEGUN.store(MOVES_BEGUN.load() + 1);
}

/// It has been moved.
#[inline(always)]
pub(crate) fn end_move() {
    MOVES_ENDED.store(MOVES_BEGUN.load());
}

/// A dentry is going to be freed. That another CPU may lose one more than it counts does no harm: what is counted differs from all
/// that has been seen before it, since who has seen the other was in an open that RCU waits for, too.
#[inline(always)]
pub(crate) fn dies(dentry: u64) {
    let deaths = death(dentry);
    deaths.set(deaths.get().wrapping_add(1));
}

/// How many have been in the place of this one.
#[inline(always)]
pub(crate) fn deaths(dentry: u64) -> u32 {
    death(dentry).get()
}

#[expect(clippy::indexing_slicing, reason = "the mask keeps it within")]
#[inline(always)]
fn death(dentry: u64) -> &'static Cell<u32> {
    &DEATHS.0[place(dentry) & (SLOTS - 1)]
}

/// The place of a dentry. The verifier allows no arithmetic with a pointer but to take it from another; then it is a number.
#[inline(always)]
fn place(dentry: u64) -> usize {
    place_of(dentry.wrapping_sub(&raw const DEATHS as u64))
}

/// Where a directory is remembered on this CPU, by its dentry. Only `do_filp_open` uses it, which does not interrupt itself.
#[inline(always)]
pub(crate) fn remembered(dentry: u64) -> Option<&'static Remembered> {
    let slot = REMEMBERED.get_ptr_mut(place(dentry) as u32 & (REMEMBERED_LEN - 1))?;
    // SAFETY: this CPU's slot, words of which any are a value; the one program that uses it is not run in the middle of itself.
    Some(unsafe { &*slot.cast::<Remembered>() })
}

/// Whether `take` leaves something of a cgroup's share: it is given when that is full, zero the first time, and says when it is
/// afterwards. Two CPUs may take the same part of it.
#[inline(always)]
pub(crate) fn in_share(cgroup: u64, take: impl Fn(u64) -> Option<u64>) -> bool {
    let Some(full_at) = SHARES.get_ptr_mut(cgroup) else {
        let Some(next) = take(0) else { return false };
        // If it cannot be kept, the share begins anew.
        SHARES.insert(cgroup, next, 0).ok();
        return true;
    };
    // SAFETY: a value of the map, read as one word.
    let Some(next) = take(unsafe { full_at.read_volatile() }) else { return false };
    // SAFETY: the same, written as one word.
    unsafe { full_at.write_volatile(next) };
    true
}

/// Counts a record that a cgroup was refused.
#[inline(always)]
pub(crate) fn count_refused(cgroup: u64) {
    if REFUSED.get_ptr_mut(cgroup).is_none() {
        // Another CPU may have done so meanwhile.
        REFUSED.insert(cgroup, 0, NO_EXIST).ok();
    }
    if let Some(count) = REFUSED.get_ptr_mut(cgroup) {
        // SAFETY: this CPU's value; a program in the middle of which another runs for the same cgroup may lose it one.
        unsafe { *count += 1 };
    }
}

/// Counts an open that passed the filter.
#[inline(always)]
pub(crate) fn count_passed(reason: Reason) {
    if let Some(count) = PASSED.get_ptr_mut(reason as u32) {
        // SAFETY: this CPU's slot of this program; nobody else writes it.
        unsafe { *count += 1 };
    }
}

/// Memory of this CPU for a record of `hook`.
pub(crate) fn scratch(hook: Hook) -> Option<*mut Scratch> {
    match hook {
        Hook::DoFilpOpen => SCRATCH_DO_FILP_OPEN.get_ptr_mut(0),
        Hook::SysExit => SCRATCH_SYS_EXIT.get_ptr_mut(0),
        Hook::VfsTruncate => SCRATCH_VFS_TRUNCATE.get_ptr_mut(0),
        Hook::SchedProcessExec => SCRATCH_SCHED_PROCESS_EXEC.get_ptr_mut(0),
        // Their records are kept from one end of a call to the other.
        Hook::DoHandleOpen
        | Hook::SysTruncate
        | Hook::DoRenameat2
        | Hook::DoLinkat
        | Hook::DoUnlinkat
        | Hook::DoRmdir
        // Their records are small, and stand on the stack or in the ring.
        | Hook::SchedProcessFork
        | Hook::SchedProcessExit
        | Hook::CgroupMkdir
        | Hook::CgroupRmdir => None,
    }
}

/// Memory for the record of the call that this thread begins; None, and counted, if there is none.
pub(crate) fn begin_call(hook: Hook) -> Option<*mut Scratch> {
    let thread = bpf_get_current_pid_tgid();
    let added = EMPTY.get(0).is_some_and(|empty| CALLS_UNDER_WAY.insert(thread, empty, 0).is_ok());
    let scratch = if added { call_under_way() } else { None };
    if scratch.is_none() {
        count_loss(hook, Loss::NoMemory);
    }
    scratch
}

/// The record of the call that this thread is in.
pub(crate) fn call_under_way() -> Option<*mut Scratch> {
    CALLS_UNDER_WAY.get_ptr_mut(bpf_get_current_pid_tgid())
}

/// The call is over.
pub(crate) fn end_call() {
    // It was there when the caller looked; nobody else takes away what is this thread's.
    CALLS_UNDER_WAY.remove(bpf_get_current_pid_tgid()).ok();
}

/// Counts a record that cannot be handed over.
pub(crate) fn count_loss(hook: Hook, reason: Loss) {
    let slot = hook as u32 * LOSS_REASONS as u32 + reason as u32;
    if let Some(count) = LOSSES.get_ptr_mut(slot) {
        // SAFETY: this CPU's slot of this program; nobody else writes it.
        unsafe { *count += 1 };
    }
}

/// Counts a run of a program for the sensor itself.
pub(crate) fn count_fired(hook: Hook, part: Part) {
    let slot = hook as u32 * PARTS as u32 + part as u32;
    if let Some(count) = FIRED.get_ptr_mut(slot) {
        // SAFETY: this CPU's slot of this program; nobody else writes it.
        unsafe { *count += 1 };
    }
}

/// The next sequence number of `hook` on this CPU, from 1.
pub(crate) fn next_sequence(hook: Hook) -> u64 {
    let Some(last) = SEQUENCES.get_ptr_mut(hook as u32) else { return 0 };
    // SAFETY: this CPU's slot of this program; nobody else writes it.
    let last = unsafe { &mut *last };
    *last += 1;
    *last
}
