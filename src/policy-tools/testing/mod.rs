//! Policy tests: requests with expected decisions and deciding policies, in files beside the
//! policies. `file` reads them from YAML, `question` builds the requests, `run` decides them.

mod file;
mod own;
mod question;
mod run;
mod yaml;

pub use file::CasePrincipal;
pub use run::{CaseReport, Coverage, NOON, Report, run};
pub use yaml::{is_case_file, read, span};
