//! One file a hook family: the attach point, and what it makes of its arguments.
mod call;
mod cgroup;
mod filp_open;
mod moves;
mod open;
mod process;
mod sys_exit;
mod truncate;
mod whoami;
