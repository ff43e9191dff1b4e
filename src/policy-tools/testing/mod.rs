//! Policy tests: requests with expected decisions and deciding policies, in files beside the
//! policies. `file` reads them from YAML, `query` builds the requests, `run` decides them.

mod file;
mod proxy_actions;
mod query;
mod run;
mod yaml;

pub use file::CasePrincipal;
pub use run::{CaseReport, Coverage, NOON, Report, run};
pub use yaml::{is_case_file, read, span};
