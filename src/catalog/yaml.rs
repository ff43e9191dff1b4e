//! YAML: one document of plain values.

use granit_parser::{Event, Parser, ScalarStyle, ScanError, Span, Tag};

use crate::{
    node::{Budget, Key, MAX_DEPTH, Node, NodeValue, once},
    report::{Location, Problem},
};

/// Reads a document. Aliases are refused: no catalog needs them, and a few lines with them can
/// expand to more than fits into memory.
pub(crate) fn read(text: &str) -> Result<Node, Problem> {
    let options = granit_parser::options! {
        disallow_directives: true,
        flow_nesting_limit: MAX_DEPTH + 1,
        block_nesting_limit: MAX_DEPTH + 1,
    };
    let mut reader = Reader {
        events: Parser::new_from_str_with_options(text, options),
        budget: Budget::default(),
    };
    let (_, mut at) = reader.next()?;
    let mut document = None;
    loop {
        let (event, place) = reader.next()?;
        match event {
            Event::StreamEnd => break,
            Event::DocumentStart(..) if document.is_some() => {
                return Err(Problem::at(place, "a second document in the same file"));
            }
            Event::DocumentStart(..) => {
                let (event, place) = reader.next()?;
                document = Some(reader.node(event, place, 0)?);
            }
            _ => {}
        }
        at = place;
    }
    document.ok_or_else(|| Problem::at(at, "the file is empty"))
}

struct Reader<'a> {
    events: Parser<'a, granit_parser::StrInput<'a>>,
    budget: Budget,
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Result<(Event<'a>, Location), Problem> {
        match self.events.next_event() {
            Some(Ok((event, span))) => Ok((event, place(&span))),
            Some(Err(error)) => Err(broken(&error)),
            None => Ok((Event::StreamEnd, Location::default())),
        }
    }

    fn node(&mut self, event: Event<'a>, place: Location, depth: usize) -> Result<Node, Problem> {
        self.budget.take(place, depth)?;
        let what = match event {
            Event::Scalar(text, style, _, tag) => scalar(&text, style, tag.as_deref(), place)?,
            Event::SequenceStart(_, _, tag) => {
                untagged(tag.as_deref(), "seq", place)?;
                let mut items = Vec::new();
                loop {
                    let (event, place) = self.next()?;
                    match event {
                        Event::SequenceEnd => break NodeValue::List(items),
                        event => items.push(self.node(event, place, depth + 1)?),
                    }
                }
            }
            Event::MappingStart(_, _, tag) => {
                untagged(tag.as_deref(), "map", place)?;
                let mut entries = Vec::new();
                loop {
                    let (event, place) = self.next()?;
                    let key = match event {
                        Event::MappingEnd => break once(entries)?,
                        Event::Scalar(text, _, _, None) => {
                            self.budget.take(place, depth + 1)?;
                            Key { place, text: text.into() }
                        }
                        _ => return Err(Problem::at(place, "a key must be a plain text")),
                    };
                    let (event, place) = self.next()?;
                    entries.push((key, self.node(event, place, depth + 1)?));
                }
            }
            Event::Alias(_) => {
                return Err(Problem::at(place, "aliases are not taken: write the value out"));
            }
            _ => return Err(Problem::at(place, "the file ends in the middle")),
        };
        Ok(Node { place, what })
    }
}

fn place(span: &Span) -> Location {
    let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    Location { line: number(span.start.line()), column: number(span.start.col().saturating_add(1)) }
}

fn broken(error: &ScanError) -> Problem {
    let at = error.marker();
    let place = place(&Span::empty(*at));
    // The position is reported separately.
    let text = error.kind().to_string();
    Problem::at(place, format!("this is not YAML: {text}"))
}

fn untagged(tag: Option<&Tag>, own: &str, place: Location) -> Result<(), Problem> {
    match tag {
        Some(tag) if !tag.is_yaml_core_schema_tag(own) => {
            Err(Problem::at(place, "a tag means nothing here: remove it"))
        }
        _ => Ok(()),
    }
}

fn scalar(
    text: &str,
    style: ScalarStyle,
    tag: Option<&Tag>,
    place: Location,
) -> Result<NodeValue, Problem> {
    match tag {
        Some(tag) if tag.is_yaml_core_schema_tag("str") => return Ok(NodeValue::Text(text.into())),
        Some(_) => return Err(Problem::at(place, "a tag means nothing here: remove it")),
        None => {}
    }
    if style != ScalarStyle::Plain {
        return Ok(NodeValue::Text(text.into()));
    }
    Ok(match text {
        "" | "~" | "null" | "Null" | "NULL" => NodeValue::Null,
        "true" | "True" | "TRUE" => NodeValue::Flag(true),
        "false" | "False" | "FALSE" => NodeValue::Flag(false),
        _ if is_number(text) => NodeValue::Number(text.into()),
        _ => NodeValue::Text(text.into()),
    })
}

/// A decimal number. Others (`0x1f`, `.inf`) stay texts, without loss.
fn is_number(text: &str) -> bool {
    let digits = text.trim_start_matches(['-', '+']);
    digits.starts_with(|c: char| c.is_ascii_digit())
        && text.len() - digits.len() <= 1
        && digits
            .bytes()
            .all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'e' | b'E' | b'-' | b'+'))
        && text.parse::<f64>().is_ok()
}
