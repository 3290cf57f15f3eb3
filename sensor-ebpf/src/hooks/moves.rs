//! What ends that which the filter remembers of directories: they are moved, and their memory becomes another's.
use aya_ebpf::{
    macros::{fentry, fexit},
    programs::{FEntryContext, FExitContext},
};

use crate::{
    kernel::{DENTRY_D_INODE, DENTRY_D_RCU, constant, is_directory, load},
    maps::{begin_move, dies, end_move},
};

// The one place by which every change of a dentry's name or parent goes, from all file systems, under `rename_lock`: nobody
// else is in here meanwhile, and no run of these programs is skipped.
// match-proto: void __d_move(struct dentry *dentry, struct dentry *target, bool exchange)
#[fentry(function = "__d_move")]
fn d_move_entry(ctx: FEntryContext) -> i32 {
    let is_moved = |dentry: u64| is_directory(load(dentry, constant(&DENTRY_D_INODE)));
    if is_moved(ctx.arg(0)) || is_moved(ctx.arg(1)) {
        begin_move();
    }
    0
}

// match-proto: void __d_move(struct dentry *dentry, struct dentry *target, bool exchange)
#[fexit(function = "__d_move")]
fn d_move(_: FExitContext) -> i32 {
    end_move();
    0
}

// Every dentry that a path may lead to is freed by one of these two, which RCU calls by their addresses (dentry_free() of
// fs/dcache.c): no compiler can have put them into their caller. Only here its memory becomes free.
// match-proto: void __d_free(struct callback_head *head)
#[fentry(function = "__d_free")]
fn d_free(ctx: FEntryContext) -> i32 {
    dies(ctx.arg::<u64>(0) - constant(&DENTRY_D_RCU) as u64);
    0
}

// With a long name.
// match-proto: void __d_free_external(struct callback_head *head)
#[fentry(function = "__d_free_external")]
fn d_free_external(ctx: FEntryContext) -> i32 {
    dies(ctx.arg::<u64>(0) - constant(&DENTRY_D_RCU) as u64);
    0
}
