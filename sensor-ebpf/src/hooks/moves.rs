//! Moves of directories: what the filter remembers of them is over then.
use aya_ebpf::{
    macros::{fentry, fexit},
    programs::{FEntryContext, FExitContext},
};

use crate::{
    kernel::{DENTRY_D_INODE, INODE_I_MODE, constant, load},
    maps::{begin_move, end_move},
};

/// `S_IFMT` and `S_IFDIR` of include/uapi/linux/stat.h.
const TYPE: u16 = 0o170_000;
const DIRECTORY: u16 = 0o040_000;

// The one place by which every change of a dentry's name or parent goes, from all file systems, under `rename_lock`: nobody
// else is in here meanwhile, and no run of these programs is skipped.
// match-proto: void __d_move(struct dentry *dentry, struct dentry *target, bool exchange)
#[fentry(function = "__d_move")]
fn d_move_entry(ctx: FEntryContext) -> i32 {
    let is_directory = |dentry: u64| {
        let inode: u64 = load(dentry, constant(&DENTRY_D_INODE));
        load::<u16>(inode, constant(&INODE_I_MODE)) & TYPE == DIRECTORY
    };
    if is_directory(ctx.arg(0)) || is_directory(ctx.arg(1)) {
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
