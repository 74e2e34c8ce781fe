//! The program from the outside: what a user types, and what real peers say of the result.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "that is how a test fails")]

mod session;

mod attach;
mod broken;
mod command_line;
mod compressed;
mod create_fs;
mod demo;
mod doctor;
mod ext4_files;
mod fat;
mod files;
mod image_formats;
mod info;
mod kernel_only;
mod killed;
mod loop_device;
mod losetup;
mod luks;
mod mount;
mod mount_trees;
mod net_fidelity;
mod net_link;
mod net_names;
mod net_peers;
mod net_run;
mod net_show;
mod ntfs;
mod real_images;
mod run_files;
mod run_killed;
mod run_machines;
mod run_worlds;
mod run_written;
mod serve;
mod serve_guest;
mod serve_tls;
mod serve_ublk;
mod sound;
mod sound_browsers;
mod sound_players;
mod squashfs;
mod stacks;
mod top;
mod web;
