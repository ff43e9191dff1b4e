//! The audit log against what it must withstand: abrupt stops, full disks, damage, other
//! processes, many producers; and what must never be found in it.

mod command;
mod common;
mod crash;
mod paging;
mod reading;
mod secrecy;
mod store;
