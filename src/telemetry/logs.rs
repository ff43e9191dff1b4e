//! Logs: to standard error only, because standard output may be protocol traffic.

use std::io::{self, IsTerminal, Write};

use tracing_subscriber::{EnvFilter, fmt::MakeWriter};

use crate::config::{LogFormat, Telemetry};
use portcullis_foundation::printable::escaped;

/// Variable whose filter overrides the config's.
const VARIABLE: &str = "PORTCULLIS_LOG";
const DEFAULT_FILTER: &str = "info";

/// An invalid log filter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{origin}: `{filter}` is not a log filter ({reason}); write a level such as `info`, or levels by module such as `info,portcullis_policy=debug`"
)]
pub struct IllegalFilter {
    /// Key or variable that contains it.
    pub origin: &'static str,
    pub filter: String,
    pub reason: String,
}

/// Starts logging for this process. A second call changes nothing.
///
/// # Errors
/// An invalid filter in the config or in `PORTCULLIS_LOG`.
pub fn init(config: &Telemetry) -> Result<(), IllegalFilter> {
    let filter = filter(config, std::env::var(VARIABLE).ok())?;
    let json = match config.log_format {
        LogFormat::Json => true,
        LogFormat::Text => false,
        LogFormat::Auto => !io::stderr().is_terminal(),
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_writer(Escaping(io::stderr));
    // `Err` means that a subscriber is already installed, as wanted.
    let _ = if json {
        builder.json().flatten_event(true).with_span_list(false).try_init()
    } else {
        builder.try_init()
    };
    Ok(())
}

fn filter(config: &Telemetry, variable: Option<String>) -> Result<EnvFilter, IllegalFilter> {
    let (origin, filter) = match (variable.filter(|v| !v.is_empty()), &config.log) {
        (Some(filter), _) => (VARIABLE, filter),
        (None, Some(filter)) => ("telemetry.log", filter.clone()),
        (None, None) => ("the default", DEFAULT_FILTER.to_owned()),
    };
    EnvFilter::builder().parse(&filter).map_err(|error| IllegalFilter {
        origin,
        filter,
        reason: error.to_string(),
    })
}

/// Writer of whole lines that escapes characters that could control a terminal or hide text as
/// `\uXXXX`, so that a tool's name can neither forge a line nor control a terminal. The format is
/// JSON's own, so a JSON line keeps its value.
struct Escaping<M>(M);

impl<'a, M: MakeWriter<'a>> MakeWriter<'a> for Escaping<M> {
    type Writer = EscapingWriter<M::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        EscapingWriter(self.0.make_writer())
    }
}

struct EscapingWriter<W>(W);

impl<W: Write> Write for EscapingWriter<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.write_all(escape(&String::from_utf8_lossy(line)).as_bytes())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Line with its last line feed unchanged and every other such character escaped.
fn escape(line: &str) -> String {
    match line.strip_suffix('\n') {
        Some(text) => escaped(text, |_| false).into_owned() + "\n",
        None => escaped(line, |_| false).into_owned(),
    }
}
#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;
    use tracing_subscriber::fmt;

    use super::*;
    use portcullis_foundation::printable::can_steer;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    const HOSTILE: &str =
        "x\r\n2026 INFO forged\u{1b}[31m\u{9b}2J\u{202e}\u{200b}\u{2060}\u{2028}\u{e0041}";

    #[test]
    fn hostile_name_stays_on_its_line() {
        for json in [false, true] {
            let sink = Sink::default();
            let make = {
                let sink = sink.clone();
                move || sink.clone()
            };
            let builder = fmt().with_ansi(false).with_writer(Escaping(make));
            let log = || tracing::info!(tool = HOSTILE, other = %HOSTILE, "called {HOSTILE}");
            if json {
                tracing::subscriber::with_default(builder.json().finish(), log);
            } else {
                tracing::subscriber::with_default(builder.finish(), log);
            }
            let text = String::from_utf8(sink.0.lock().clone()).unwrap();
            assert_eq!(text.lines().count(), 1, "{text:?}");
            assert!(text.ends_with('\n'));
            assert!(!text.trim_end_matches('\n').contains(can_steer), "{text:?}");
            if json {
                let value: serde_json::Value = serde_json::from_str(&text).unwrap();
                assert_eq!(value["fields"]["tool"], HOSTILE);
            }
        }
    }

    #[test]
    fn variable_overrides_the_config() {
        let config = Telemetry { log: Some("warn".into()), ..Telemetry::default() };
        assert_eq!(filter(&config, Some("debug".into())).unwrap().to_string(), "debug");
        assert_eq!(filter(&config, Some(String::new())).unwrap().to_string(), "warn");
        assert_eq!(filter(&Telemetry::default(), None).unwrap().to_string(), "info");
    }

    #[test]
    fn illegal_filter_error_names_its_origin() {
        let config = Telemetry { log: Some("portcullis=loud".into()), ..Telemetry::default() };
        let error = filter(&config, None).unwrap_err();
        assert_eq!(error.origin, "telemetry.log");
        assert!(error.to_string().contains("`portcullis=loud` is not a log filter"));
        assert_eq!(filter(&config, Some("a=b=c".into())).unwrap_err().origin, "PORTCULLIS_LOG");
    }
}
