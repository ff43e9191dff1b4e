//! Prints the value of a reference, or the error. For tests, which need a separate environment for
//! it.

use std::process::ExitCode;

use portcullis_vault::{Source, Unresolved};

fn main() -> ExitCode {
    let reference = std::env::args().nth(1).unwrap_or_default();
    match reference.parse().and_then(|source: Source| source.resolve()) {
        Ok(secret) => {
            println!("{}", secret.expose());
            ExitCode::SUCCESS
        }
        Err(error) => failed(&error),
    }
}

fn failed(error: &Unresolved) -> ExitCode {
    println!("{error}");
    println!("{error:?}");
    ExitCode::FAILURE
}
