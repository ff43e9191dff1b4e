//! Cases: requests beside the policies, with what should become of them and which policy should
//! decide it. Read from YAML (`file`), put as questions (`question`), asked of an engine (`run`).

mod file;
mod own;
mod question;
mod run;
mod yaml;

pub use file::Who;
pub use run::{Coverage, NOON, Ran, Report, run};
pub use yaml::{is_case_file, read, span};
