//! Messages of a case file: every case, once for each of its rows.

use serde_saphyr::Spanned;

use super::file::{Case, Document, Expect};
use portcullis_policy::{File, Finding};
use portcullis_policy_tools::span;

/// Offset and length in the file.
pub type Span = (usize, usize);

/// Messages that one plugin receives in order; usually one.
pub struct MessageSequence {
    pub name: String,
    pub messages: Vec<CaseMessage>,
}

/// One message, with its settings and its expected result.
pub struct CaseMessage {
    pub case: Case,
    pub expect: Expect,
    /// Position of the expectation.
    pub expect_place: Span,
    /// Position of the row or the case.
    pub place: Span,
    pub is_row: bool,
}

/// All messages of a file, and all its errors.
pub fn expand(file: &File, document: &Document) -> (Vec<MessageSequence>, Vec<Finding>) {
    let mut reader = Reader { file, sequences: Vec::new(), findings: Vec::new() };
    for case in &document.cases {
        reader.case(case);
    }
    (reader.sequences, reader.findings)
}

struct Reader<'a> {
    file: &'a File,
    sequences: Vec<MessageSequence>,
    findings: Vec<Finding>,
}

impl Reader<'_> {
    fn wrong(&mut self, place: Span, message: &str, label: &str, help: &str) {
        let finding =
            Finding::error("plugin-cases", message).at(self.file, place.0, place.1, label);
        self.findings.push(if help.is_empty() { finding } else { finding.help(help) });
    }

    fn case(&mut self, case: &Spanned<Case>) {
        let place = span(self.file, case.referenced);
        let Some(name) = &case.value.name else {
            return self.wrong(place, "the case has no name", "begins here", "add `name: …`");
        };
        let (rows, steps) = (&case.value.each, &case.value.steps);
        match (rows, steps) {
            (Some(_), Some(_)) => {
                let help = "write two cases";
                self.wrong(place, "the case has both `each` and `steps`", "begins here", help);
            }
            (None, None) => {
                let one = self.one(case.value.clone(), place, false);
                let messages = one.into_iter().collect();
                self.sequences.push(MessageSequence { name: name.clone(), messages });
            }
            (Some(rows), None) => {
                for (at, (place, one)) in
                    self.rows(rows, &case.value, place).into_iter().enumerate()
                {
                    let name = match &one.name {
                        Some(own) => format!("{name}: {own}"),
                        None => format!("{name} (row {})", at + 1),
                    };
                    let messages = self.one(one, place, true).into_iter().collect();
                    self.sequences.push(MessageSequence { name, messages });
                }
            }
            (None, Some(steps)) => {
                let steps = self.rows(steps, &case.value, place);
                let messages =
                    steps.into_iter().filter_map(|(place, one)| self.one(one, place, true));
                let messages = messages.collect();
                self.sequences.push(MessageSequence { name: name.clone(), messages });
            }
        }
        self.sequences.retain(|sequence| !sequence.messages.is_empty());
    }

    fn rows(&mut self, rows: &[Spanned<Case>], case: &Case, place: Span) -> Vec<(Span, Case)> {
        if rows.is_empty() {
            self.wrong(place, "the case has no rows, so it asks nothing", "begins here", "");
        }
        let mut all = Vec::new();
        for row in rows {
            let place = span(self.file, row.referenced);
            if row.value.each.is_some() || row.value.steps.is_some() {
                self.wrong(place, "a row has no rows of its own", "has some", "");
                continue;
            }
            all.push((place, over(&row.value, case)));
        }
        all
    }

    fn one(&mut self, case: Case, place: Span, is_row: bool) -> Option<CaseMessage> {
        let Some(expect) = &case.expect else {
            let help =
                "add `expect:` `pass`, `refuse`, `replace`, `fault`, `unusable` or `unasked`";
            self.wrong(place, "the case expects nothing", "begins here", help);
            return None;
        };
        let (expect, expect_place) = (expect.value, span(self.file, expect.referenced));
        let goes = |is_set: bool, key: &'static str, with: &[Expect]| {
            (is_set && !with.contains(&expect)).then_some((key, with.to_vec()))
        };
        let replaced = [Expect::Replace];
        let stray = goes(case.code.is_some(), "code", &[Expect::Refuse])
            .or_else(|| {
                let with = [Expect::Refuse, Expect::Fault, Expect::Unusable];
                goes(case.says.is_some(), "says", &with)
            })
            .or_else(|| goes(case.becomes.is_some(), "becomes", &replaced))
            .or_else(|| goes(case.becomes_text.is_some(), "becomes-text", &replaced))
            .or_else(|| goes(case.becomes_payload.is_some(), "becomes-payload", &replaced));
        if let Some((key, with)) = stray {
            let with: Vec<_> = with.iter().map(|e| format!("`expect: {}`", e.as_str())).collect();
            let message = format!("`{key}` goes with {}", with.join(", "));
            self.wrong(expect_place, &message, "expects something else", "");
            return None;
        }
        Some(CaseMessage { case, expect, expect_place, place, is_row })
    }
}

/// Case with the values of a row, which take precedence.
fn over(row: &Case, case: &Case) -> Case {
    let (row, mut merged) = (row.clone(), case.clone());
    (merged.each, merged.steps) = (None, None);
    // A row with a target replaces the whole target of the case, and likewise the payload.
    if row.call.is_some() || row.get.is_some() || row.read.is_some() || row.method.is_some() {
        (merged.call, merged.get, merged.read) = (None, None, None);
        (merged.method, merged.on) = (None, None);
    }
    let says = row.args.is_some()
        || row.params.is_some()
        || row.result.is_some()
        || row.text.is_some()
        || row.error.is_some()
        || row.payload.is_some();
    if says {
        (merged.args, merged.params, merged.result) = (None, None, None);
        (merged.text, merged.error, merged.payload) = (None, None, None);
        if row.payload.is_none() {
            merged.phase = None;
        }
    }
    // These values belong to another verdict.
    let expects = |case: &Case| case.expect.as_ref().map(|expect| expect.value);
    if row.expect.is_some() && expects(&row) != expects(case) {
        (merged.code, merged.says, merged.becomes) = (None, None, None);
        (merged.becomes_text, merged.becomes_payload) = (None, None);
    }
    macro_rules! take {
        ($($field:ident)*) => { $(if row.$field.is_some() { merged.$field = row.$field; })* };
    }
    merged.name = row.name;
    take!(who call get read method on args params result text error payload phase from labels);
    take!(exchange session config grants secrets now state http);
    take!(expect code says becomes becomes_text becomes_payload gives reports leaves counts logs);
    merged
}
