//! Printing: escaped for terminals, without a panic on a closed pipe.

use std::{
    borrow::Cow,
    fmt::Write as _,
    io::{self, IsTerminal, Write as _},
    sync::mpsc,
    thread,
    time::Duration,
};

use comfy_table::{Cell, Color, ColumnConstraint, ContentArrangement, Table, presets};
use indicatif::{ProgressBar, ProgressDrawTarget};
use miette::{GraphicalReportHandler, GraphicalTheme};

use super::{Exit, Reports, Usage};
use crate::manage::InvalidInput;
use portcullis_foundation::printable::{can_steer, escaped};

/// Text with every unsafe character escaped: `\n`, `\u{1b}`.
pub fn escape(text: &str) -> Cow<'_, str> {
    if !text.contains(can_steer) {
        return text.into();
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            c if can_steer(c) => escaped.extend(c.escape_default()),
            c => escaped.push(c),
        }
    }
    escaped.into()
}

/// JSON text with the unsafe characters that JSON permits written as `\uXXXX`. They occur only
/// within strings, so the value stays the same.
pub fn escape_json(text: &str) -> Cow<'_, str> {
    escaped(text, |c| c == '\n')
}

/// Writes to standard output, and returns an error if that fails.
pub(super) fn stdout(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Writes to standard error. If it is closed, nothing can be reported.
pub(super) fn stderr(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

/// Whether output to a stream has colors: it is a terminal, and `NO_COLOR` is unset or empty.
fn has_color(to: &impl IsTerminal) -> bool {
    to.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Columns of tables with decisions and states.
const COLORED_COLUMNS: [&str; 2] = ["DECISION", "STATE"];

/// Color of a decision or a state.
fn color(word: &str) -> Option<Color> {
    match word {
        "allowed" | "running" | "healthy" | "ok" => Some(Color::Green),
        "refused" | "denied" | "failed" | "unhealthy" | "FAIL" | "not running" => Some(Color::Red),
        "pulling" | "resting" | "leaving" | "disabled" | "warn" => Some(Color::Yellow),
        _ => None,
    }
}

/// A decision or a state, in its color on a terminal.
pub(super) fn state(word: &str) -> Cow<'_, str> {
    let number = match color(word).filter(|_| has_color(&io::stdout())) {
        Some(Color::Green) => 32,
        Some(Color::Red) => 31,
        Some(_) => 33,
        None => return escape(word),
    };
    format!("\u{1b}[{number}m{word}\u{1b}[0m").into()
}

/// Minimum columns of a wrapped cell of several words.
const NARROWEST: usize = 20;

/// Table without borders and with escaped cells. On a terminal, cells of several words wrap.
pub(super) fn table<R>(header: &[&str], rows: R) -> String
where
    R: IntoIterator,
    R::Item: IntoIterator<Item = String>,
{
    let width = io::stdout().is_terminal().then(|| Table::new().width()).flatten();
    table_within(width, has_color(&io::stdout()), header, rows)
}

/// Table for a terminal of that many columns. 0 columns mean an unknown width.
fn table_within<R>(width: Option<u16>, colored: bool, header: &[&str], rows: R) -> String
where
    R: IntoIterator,
    R::Item: IntoIterator<Item = String>,
{
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(header.to_vec());
    let mut of_words = vec![false; header.len()];
    for row in rows {
        let row: Vec<_> = row.into_iter().map(|cell| escape(&cell).into_owned()).collect();
        for (of_words, cell) in of_words.iter_mut().zip(&row) {
            *of_words |= cell.trim().contains(' ');
        }
        let cells = row.into_iter().zip(header).map(|(text, column)| {
            let color = color(&text).filter(|_| colored && COLORED_COLUMNS.contains(column));
            let cell = Cell::new(text);
            match color {
                Some(color) => cell.fg(color),
                None => cell,
            }
        });
        table.add_row(cells);
    }
    // Ids, names and times are not wrapped, so that they can be copied. If they leave too little
    // for the rest, the terminal breaks the lines.
    let widths = table.column_max_content_widths();
    let needed = widths.iter().zip(&of_words).map(|(width, of_words)| match of_words {
        true => NARROWEST.min(usize::from(*width)) + 2,
        false => usize::from(*width) + 2,
    });
    match width {
        Some(width) if needed.sum::<usize>() <= usize::from(width) => {
            table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width);
        }
        _ => {
            table.set_content_arrangement(ContentArrangement::Disabled);
        }
    }
    for (column, of_words) in table.column_iter_mut().zip(&of_words) {
        column.set_padding((0, 2));
        if !of_words {
            column.set_constraint(ColumnConstraint::ContentWidth);
        }
    }
    table.lines().fold(String::new(), |mut text, line| {
        text.push_str(line.trim_end());
        text.push('\n');
        text
    })
}

/// Diagnostic with the excerpt of its file below, in color on a terminal.
pub(super) fn render(diagnostic: &dyn miette::Diagnostic, to: &impl IsTerminal) -> String {
    let theme = match has_color(to) {
        true => GraphicalTheme::unicode(),
        false => GraphicalTheme::unicode_nocolor(),
    };
    let mut text = String::new();
    let handler = GraphicalReportHandler::new_themed(theme).with_links(false);
    if handler.render_report(&mut text, diagnostic).is_err() {
        text = format!("{}\n", escape(&diagnostic.to_string()));
    }
    text
}

/// Prints the error that ended a command, and returns the exit code.
pub(super) fn failure(error: &anyhow::Error) -> Exit {
    let broken_pipe = error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|cause| cause.kind() == io::ErrorKind::BrokenPipe);
    if broken_pipe {
        // The reader of the output closed it (`portcullis … | head`): print nothing, but fail,
        // since the output was not delivered.
        return Exit::Failure;
    }
    if let Some(Reports(reports)) = error.downcast_ref() {
        reports.iter().for_each(|report| stderr(&render(report.as_ref(), &io::stderr())));
        return Exit::Failure;
    }
    let mut text = format!("error: {}\n", escape(&error.to_string()));
    for cause in error.chain().skip(1) {
        let _ = writeln!(text, "  because: {}", escape(&cause.to_string()));
    }
    stderr(&text);
    if error.is::<Usage>() || error.is::<InvalidInput>() { Exit::Usage } else { Exit::Failure }
}

/// Spinner on standard error, shown after one second.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
    waiting: Option<(mpsc::Sender<()>, thread::JoinHandle<()>)>,
}

impl Progress {
    const PATIENCE: Duration = Duration::from_secs(1);

    pub(super) fn start(what: String) -> Self {
        let bar = ProgressBar::new_spinner();
        bar.set_draw_target(ProgressDrawTarget::hidden());
        bar.set_message(escape(&what).into_owned());
        let waiting = io::stderr().is_terminal().then(|| {
            let (done, over) = mpsc::channel::<()>();
            let bar = bar.clone();
            let show = move || {
                if over.recv_timeout(Self::PATIENCE) == Err(mpsc::RecvTimeoutError::Timeout) {
                    bar.set_draw_target(ProgressDrawTarget::stderr());
                    bar.enable_steady_tick(Duration::from_millis(100));
                }
            };
            (done, thread::spawn(show))
        });
        Self { bar, waiting }
    }

    /// Replaces the text of the spinner.
    pub fn now(&self, what: impl Into<String>) {
        self.bar.set_message(escape(&what.into()).into_owned());
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some((done, thread)) = self.waiting.take() {
            drop(done);
            let _ = thread.join();
        }
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_escaped() {
        for (text, shown) in [
            ("plain, ünïcode, 日本", "plain, ünïcode, 日本"),
            ("a\x1b[31mb", r"a\u{1b}[31mb"),
            ("a\r\nb\tc", r"a\r\nb\tc"),
            ("\u{202e}gnp.exe", r"\u{202e}gnp.exe"),
            ("a\u{9b}31mb", r"a\u{9b}31mb"),
            ("\u{e0041}", r"\u{e0041}"),
        ] {
            assert_eq!(escape(text), shown);
        }
    }

    #[test]
    fn escaped_json_keeps_its_value() {
        let value = serde_json::json!({ "a": "\u{202e}x\u{7f}\u{e0041}\u{1b}", "b": ["\n"] });
        let pretty = serde_json::to_string_pretty(&value).unwrap();
        let text = escape_json(&pretty);
        assert!(!text.contains(|c| c != '\n' && can_steer(c)), "{text}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), value);
    }

    #[test]
    fn table_wraps_words_but_not_ids() {
        let id = "01a1fd6f-b06c-7178-8ba1-e082b5a9d80e";
        let why = "no container engine answers and the program cannot be packed into an image";
        let within = |width| {
            let row = [id.to_owned(), why.to_owned()];
            table_within(width, false, &["ID", "WHY"], [row])
        };
        let whole = format!("{:36}  WHY\n{id}  {why}\n", "ID");
        // No terminal, a terminal of unknown width, and a terminal that is too narrow.
        for width in [None, Some(0), Some(1), Some(50)] {
            assert_eq!(within(width), whole, "{width:?}");
        }
        for width in [60, 80, 100] {
            let table = within(Some(width));
            assert!(table.contains(id), "{table}");
            assert!(table.lines().all(|line| line.len() <= usize::from(width)), "{table}");
            assert!(table.lines().count() > 2, "{table}");
        }
    }

    #[test]
    fn cells_cannot_break_a_table() {
        let rows = [["a\nb".to_owned(), "c".to_owned()], ["longer cell".to_owned(), String::new()]];
        assert_eq!(
            table(&["NAME", "WHAT"], rows),
            "NAME         WHAT\na\\nb         c\nlonger cell\n"
        );
    }
}
