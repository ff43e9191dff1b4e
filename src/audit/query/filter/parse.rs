//! Parser of filters.
//!
//! ```text
//! any  = all ("or" all)*
//! all  = one ("and" one)*
//! one  = "not" one | "(" any ")" | "has" FIELD | FIELD test
//! test = ("=" | "!=" | "~" | "!~" | "<" | "<=" | ">" | ">=" | "contains") VALUE
//!      | "not"? "in" "(" VALUE ("," VALUE)* ")"
//! ```

use std::ops::Range;

use jiff::Zoned;
use winnow::{
    ModalResult, Parser as _,
    ascii::multispace0,
    combinator::{alt, opt},
    error::{ErrMode, ParserError},
    stream::{LocatingSlice, Location as _, Stateful, Stream},
    token::{any, take_while},
};

use super::{
    column::{Column, Type, nearest},
    expr::{Compare, Expr, Test},
    illegal::IllegalFilter,
    literal::{self, Pattern, TimeLiteral},
};

/// Maximum bytes of a filter.
const LONGEST: usize = 8 << 10;
/// Maximum depth of parentheses and `not`.
const DEEPEST: usize = 32;
/// Maximum number of comparisons, and of values in all of them.
const MOST: usize = 256;

struct State<'a> {
    now: &'a Zoned,
    depth: usize,
    values: usize,
}

impl std::fmt::Debug for State<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.depth)
    }
}

type Input<'a> = Stateful<LocatingSlice<&'a str>, State<'a>>;

/// Error without the text of the filter.
#[derive(Debug)]
struct ParseFailure {
    span: Range<usize>,
    what: String,
    label: &'static str,
    help: Option<String>,
}

type Parsed<T> = ModalResult<T, ParseFailure>;

impl<'a> ParserError<Input<'a>> for ParseFailure {
    type Inner = Self;

    fn from_input(input: &Input<'a>) -> Self {
        let at = input.current_token_start();
        Self { span: at..at, what: String::new(), label: "", help: None }
    }

    fn into_inner(self) -> Result<Self, Self> {
        Ok(self)
    }
}

impl ParseFailure {
    fn new(span: Range<usize>, what: impl Into<String>, label: &'static str) -> Self {
        Self { span, what: what.into(), label, help: None }
    }

    fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// Fails without backtracking: no other alternative applies.
    fn fail<T>(self) -> Parsed<T> {
        Err(ErrMode::Cut(self))
    }
}

pub(super) fn parse(text: &str, now: &Zoned) -> Result<Expr, IllegalFilter> {
    let illegal = |wrong: ParseFailure| {
        IllegalFilter::new(text, wrong.span, wrong.what, wrong.label, wrong.help)
    };
    if text.len() > LONGEST {
        let what = format!("a filter has at most {LONGEST} bytes");
        return Err(illegal(ParseFailure::new(LONGEST..LONGEST, what, "too long from here on")));
    }
    let state = State { now, depth: 0, values: 0 };
    let mut input = Stateful { input: LocatingSlice::new(text), state };
    expression(&mut input).map_err(|error| {
        illegal(match error {
            ErrMode::Backtrack(wrong) | ErrMode::Cut(wrong) => wrong,
            ErrMode::Incomplete(_) => {
                ParseFailure::new(text.len()..text.len(), "the filter ends early", "")
            }
        })
    })
}

fn expression(input: &mut Input<'_>) -> Parsed<Expr> {
    multispace0(input)?;
    if input.is_empty() {
        return Ok(Expr::default());
    }
    let expr = any_of(input)?;
    let (found, span) = peek(input);
    if found.is_empty() {
        return Ok(expr);
    }
    if found == ")" {
        return ParseFailure::new(span, "there is nothing that this closes", "no `(` before it")
            .fail();
    }
    let wrong = ParseFailure::new(
        span,
        "two conditions need a word between them",
        "expected `and` or `or`",
    );
    match found.as_str() {
        "&&" | "&" => wrong.help("write `and`"),
        "||" | "|" => wrong.help("write `or`"),
        _ => wrong,
    }
    .fail()
}

/// The next bare word or mark, or an empty text, and its position. Consumes nothing.
fn peek(input: &mut Input<'_>) -> (String, Range<usize>) {
    let before = input.checkpoint();
    let from = input.current_token_start();
    let word: Parsed<&str> = take_while(1.., literal::is_bare).parse_next(input);
    let text = match word {
        Ok(word) => word.to_owned(),
        Err(_) => {
            let mark: Parsed<char> = any.parse_next(input);
            mark.map(String::from).unwrap_or_default()
        }
    };
    input.reset(&before);
    let to = from + text.len();
    (text, from..to)
}

/// Parses this word and the space after it. Ignores case.
fn word(wanted: &'static str) -> impl FnMut(&mut Input<'_>) -> Parsed<()> {
    move |input| {
        let found = take_while(1.., literal::is_bare).parse_next(input)?;
        if !found.eq_ignore_ascii_case(wanted) {
            return Err(ErrMode::from_input(input));
        }
        multispace0(input)?;
        Ok(())
    }
}

/// Parses this mark and the space after it.
fn mark(mut wanted: &'static str) -> impl FnMut(&mut Input<'_>) -> Parsed<()> {
    move |input| {
        wanted.parse_next(input)?;
        multispace0(input)?;
        Ok(())
    }
}

fn any_of(input: &mut Input<'_>) -> Parsed<Expr> {
    let mut parts = vec![all_of(input)?];
    while opt(word("or")).parse_next(input)?.is_some() {
        parts.push(all_of(input)?);
    }
    Ok(Expr::any(parts))
}

fn all_of(input: &mut Input<'_>) -> Parsed<Expr> {
    let mut parts = vec![one(input)?];
    while opt(word("and")).parse_next(input)?.is_some() {
        parts.push(one(input)?);
    }
    Ok(Expr::all(parts))
}

fn one(input: &mut Input<'_>) -> Parsed<Expr> {
    let at = input.current_token_start();
    input.state.depth += 1;
    if input.state.depth > DEEPEST {
        let what = format!("a filter has at most {DEEPEST} parentheses and `not`s in each other");
        return ParseFailure::new(at..at, what, "too deep from here on").fail();
    }
    let expr = if opt(word("not")).parse_next(input)?.is_some() {
        Expr::Not(Box::new(one(input)?))
    } else if opt(mark("(")).parse_next(input)?.is_some() {
        let expr = any_of(input)?;
        let (found, span) = peek(input);
        if opt(mark(")")).parse_next(input)?.is_none() {
            let wrong = ParseFailure::new(at..at + 1, "this `(` is not closed", "opened here");
            return match found.as_str() {
                "" => wrong.fail(),
                _ => ParseFailure::new(span, wrong.what, "expected `)`, `and` or `or`").fail(),
            };
        }
        expr
    } else if opt(word("has")).parse_next(input)?.is_some() {
        let (column, _) = column(input)?;
        Expr::Test(Test::Has(column))
    } else {
        test(input)?
    };
    input.state.depth -= 1;
    Ok(expr)
}

fn column(input: &mut Input<'_>) -> Parsed<(Column, Range<usize>)> {
    let (found, span) = peek(input);
    let name: Parsed<&str> = take_while(1.., literal::is_bare).parse_next(input);
    if name.is_err() || literal::is_word(&found) {
        let what = match found.as_str() {
            "" => "a condition is missing at the end".to_owned(),
            _ => format!("a condition begins with a field, not with `{}`", found.escape_debug()),
        };
        return ParseFailure::new(span, what, "expected a field")
            .help("for example: client = ci-bot and not server = notes and time > 24h ago")
            .fail();
    }
    multispace0(input)?;
    match found.parse::<Column>() {
        Ok(column) => Ok((column, span)),
        Err(illegal) => {
            let help = match illegal.suggestion {
                Some(suggestion) => format!("did you mean `{suggestion}`?"),
                None => {
                    let names: Vec<_> = Column::ALL.iter().map(|column| column.name()).collect();
                    format!("fields are {}", names.join(", "))
                }
            };
            let what = format!("there is no field `{}`", found.escape_debug());
            ParseFailure::new(span, what, "unknown").help(help).fail()
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Sign {
    Is,
    Like,
    Contains,
    In,
    Order(Compare),
}

/// Parses an operator. Returns it with its negation and its position.
fn sign(input: &mut Input<'_>, column: Column) -> Parsed<(Sign, bool, Range<usize>)> {
    let at = input.current_token_start();
    let before = input.checkpoint();
    let rest = *input.input;
    let sign = alt((
        alt((
            mark("!=").value((Sign::Is, true)),
            mark("!~").value((Sign::Like, true)),
            mark("<=").value((Sign::Order(Compare::AtMost), false)),
            mark(">=").value((Sign::Order(Compare::AtLeast), false)),
            mark("<").value((Sign::Order(Compare::Less), false)),
            mark(">").value((Sign::Order(Compare::More), false)),
            alt((mark("=="), mark("="))).value((Sign::Is, false)),
            mark("~").value((Sign::Like, false)),
        )),
        alt((
            word("contains").value((Sign::Contains, false)),
            (word("not"), word("in")).value((Sign::In, true)),
            word("in").value((Sign::In, false)),
        )),
    ))
    .parse_next(input);
    match sign {
        Ok((sign, not)) => {
            let taken = rest.get(..input.current_token_start() - at).unwrap_or(rest);
            Ok((sign, not, at..at + taken.trim_end().len()))
        }
        Err(_) => {
            input.reset(&before);
            let (found, span) = peek(input);
            let what = match found.as_str() {
                "" => format!("`{column}` has no comparison"),
                _ => format!("`{}` is not a comparison of `{column}`", found.escape_debug()),
            };
            let help = format!("`{column}` takes {}", column.ty().signs());
            ParseFailure::new(span, what, "expected a comparison").help(help).fail()
        }
    }
}

fn test(input: &mut Input<'_>) -> Parsed<Expr> {
    let (column, at) = column(input)?;
    let (sign, not, sign_at) = sign(input, column)?;
    let ty = column.ty();
    let fits = match (ty, sign) {
        (Type::Text, Sign::Is | Sign::In | Sign::Like | Sign::Contains)
        | (Type::Word(_) | Type::Address, Sign::Is | Sign::In)
        | (Type::Time, Sign::Order(_))
        | (Type::Duration | Type::Bytes | Type::Number, Sign::Order(_) | Sign::Is)
        | (Type::Body, Sign::Contains) => true,
        (Type::Time, Sign::Is) => !not,
        _ => false,
    };
    if !fits {
        let example = column.example();
        return ParseFailure::new(
            sign_at,
            format!("`{column}` is not compared like this"),
            "does not fit",
        )
        .help(format!("`{column}` takes {}; for example: {example}", ty.signs()))
        .fail();
    }
    let values = match sign {
        Sign::In => list(input, column)?,
        _ => vec![value(input, column)?],
    };
    let expr = build(input, column, sign, values, at)?;
    Ok(if not { Expr::Not(Box::new(expr)) } else { expr })
}

fn list(input: &mut Input<'_>, column: Column) -> Parsed<Vec<(String, Range<usize>)>> {
    if opt(mark("(")).parse_next(input)?.is_none() {
        let (_, span) = peek(input);
        return ParseFailure::new(span, "`in` takes a list", "expected `(`")
            .help(format!("for example: {column} in (a, b)"))
            .fail();
    }
    let mut values = vec![value(input, column)?];
    while opt(mark(",")).parse_next(input)?.is_some() {
        values.push(value(input, column)?);
    }
    let (_, span) = peek(input);
    if opt(mark(")")).parse_next(input)?.is_none() {
        return ParseFailure::new(span, "the list is not closed", "expected `,` or `)`").fail();
    }
    Ok(values)
}

/// Parses a value. Returns it with its position.
fn value(input: &mut Input<'_>, column: Column) -> Parsed<(String, Range<usize>)> {
    input.state.values += 1;
    let from = input.current_token_start();
    if input.state.values > MOST {
        let what = format!("a filter has at most {MOST} values");
        return ParseFailure::new(from..from, what, "too many from here on").fail();
    }
    if opt('"').parse_next(input)?.is_some() {
        let text = rest_of_quoted(input, from)?;
        let to = input.current_token_start();
        multispace0(input)?;
        return Ok((text, from..to));
    }
    let (found, span) = peek(input);
    let word: Parsed<&str> = take_while(1.., literal::is_bare).parse_next(input);
    if word.is_err() || literal::is_word(&found) {
        let (what, help) = match found.as_str() {
            "" => ("a value is missing at the end".to_owned(), None),
            "'" => ("values stand in double quotes, or in none".to_owned(), None),
            _ if word.is_ok() => (
                format!("`{found}` is a word of this language"),
                Some(format!("write \"{found}\" where it is meant as a value")),
            ),
            _ => (
                format!("`{}` is not a value", found.escape_debug()),
                Some("a value with such characters stands in double quotes".to_owned()),
            ),
        };
        return Err(ErrMode::Cut(ParseFailure { span, what, label: "expected a value", help }));
    }
    let mut to = input.current_token_start();
    let mut text = found;
    multispace0(input)?;
    // `24h ago` and `2 weeks ago` are single values.
    if column.ty() == Type::Time && text.starts_with(|c: char| c.is_ascii_digit()) {
        let before = input.checkpoint();
        let mut longer = text.clone();
        while let Ok(more) =
            take_while::<_, _, ErrMode<ParseFailure>>(1.., literal::is_bare).parse_next(input)
        {
            longer.push(' ');
            longer.push_str(more);
            let end = input.current_token_start();
            multispace0(input)?;
            if more.eq_ignore_ascii_case("ago") {
                to = end;
                text = longer;
                return Ok((text, from..to));
            }
            if literal::is_word(more) {
                break;
            }
        }
        input.reset(&before);
    }
    Ok((text, from..to))
}

fn rest_of_quoted(input: &mut Input<'_>, from: usize) -> Parsed<String> {
    let mut text = String::new();
    loop {
        let at = input.current_token_start();
        let c: Parsed<char> = any.parse_next(input);
        match c {
            Err(_) => {
                let what = "this quote is not closed";
                return ParseFailure::new(from..from + 1, what, "opened here").fail();
            }
            Ok('"') => return Ok(text),
            Ok('\\') => match escaped(input) {
                Ok(c) => text.push(c),
                Err(_) => {
                    let to = input.current_token_start();
                    return ParseFailure::new(at..to, "an unknown escape in quotes", "unknown")
                        .help(r#"escapes are \" \\ \n \r \t \0 and \u{1f600}"#)
                        .fail();
                }
            },
            Ok(c) => text.push(c),
        }
    }
}

fn escaped(input: &mut Input<'_>) -> Parsed<char> {
    Ok(match any.parse_next(input)? {
        c @ ('"' | '\\' | '\'') => c,
        'n' => '\n',
        'r' => '\r',
        't' => '\t',
        '0' => '\0',
        'u' => {
            let digits = take_while(1..=6, |c: char| c.is_ascii_hexdigit());
            let (_, digits, _): (_, &str, _) = ('{', digits, '}').parse_next(input)?;
            u32::from_str_radix(digits, 16)
                .ok()
                .and_then(char::from_u32)
                .ok_or_else(|| ErrMode::from_input(input))?
        }
        _ => return Err(ErrMode::from_input(input)),
    })
}

/// Test of a column with these values.
fn build(
    input: &Input<'_>,
    column: Column,
    sign: Sign,
    values: Vec<(String, Range<usize>)>,
    at: Range<usize>,
) -> Parsed<Expr> {
    let first = || values.first().cloned().unwrap_or((String::new(), at.clone()));
    let bad = |(text, span): (String, Range<usize>), help: &str| {
        let what = format!("`{}` is not a value of `{column}`", text.escape_debug());
        ParseFailure::new(span, what, "not understood").help(help)
    };
    let number = |read: fn(&str) -> Option<u64>, help: &str| {
        let compare = match sign {
            Sign::Order(compare) => compare,
            _ => Compare::Equal,
        };
        let (text, span) = first();
        match read(&text) {
            Some(number) => Ok(Test::Number(column, compare, number)),
            None => bad((text, span), help).fail(),
        }
    };
    let test = match (column.ty(), sign) {
        (Type::Time, _) => return time(input, sign, first()),
        (Type::Duration, _) => {
            number(literal::duration, "give it a unit: 250us, 200ms, 1.5s, 2m or 1h")?
        }
        (Type::Bytes, _) => number(literal::bytes, "for example: 512, 64KiB or 1.5MB")?,
        (Type::Number, _) => number(|text| text.parse().ok(), "give a whole number")?,
        (Type::Address, _) => {
            let mut networks = Vec::new();
            for (text, span) in values {
                match literal::network(&text) {
                    Some(network) => networks.push(network),
                    None => {
                        let help = "give an address such as 10.1.2.3 or ::1, or a network such as \
                                    10.0.0.0/8";
                        return bad((text, span), help).fail();
                    }
                }
            }
            Test::Address(networks)
        }
        (_, Sign::Like | Sign::Contains) => {
            let (text, span) = first();
            let pattern = if sign == Sign::Like { Pattern::glob } else { Pattern::part };
            match pattern(&text) {
                Some(pattern) if sign == Sign::Like => Test::Like(column, pattern),
                Some(pattern) => Test::Contains(column, pattern),
                None => return bad((text, span), "it is too long").fail(),
            }
        }
        (Type::Word(words), _) => {
            for (text, span) in &values {
                if !words.contains(&text.as_str()) {
                    let suggestion = nearest(text, words.iter().map(|word| (*word, *word)));
                    let help = match suggestion {
                        Some(suggestion) => format!("did you mean `{suggestion}`?"),
                        None => format!("it is one of {}", words.join(", ")),
                    };
                    return bad((text.clone(), span.clone()), &help).fail();
                }
            }
            Test::In(column, values.into_iter().map(|(text, _)| text).collect())
        }
        _ => Test::In(column, values.into_iter().map(|(text, _)| text).collect()),
    };
    Ok(Expr::Test(test))
}

fn time(input: &Input<'_>, sign: Sign, (text, span): (String, Range<usize>)) -> Parsed<Expr> {
    let at = |compare, time| Expr::Test(Test::Time(compare, time));
    match (literal::time_literal(&text, input.state.now), sign) {
        (Some(TimeLiteral::At(time)), Sign::Order(compare)) => Ok(at(compare, time)),
        // The comparison uses the start or the end of the day.
        (Some(TimeLiteral::Day { begin, end }), Sign::Order(compare)) => Ok(match compare {
            Compare::More => at(Compare::AtLeast, end),
            Compare::AtMost => at(Compare::Less, end),
            same => at(same, begin),
        }),
        (Some(TimeLiteral::Day { begin, end }), _) => {
            Ok(Expr::all([at(Compare::AtLeast, begin), at(Compare::Less, end)]))
        }
        (Some(TimeLiteral::At(_)), _) => {
            ParseFailure::new(span, "no record has exactly this time", "not a day")
                .help("compare with <, <=, > or >=, or give a day: time = 2026-11-21, time = today")
                .fail()
        }
        (None, _) => ParseFailure::new(
            span,
            format!("`{}` is not a time", text.escape_debug()),
            "not understood",
        )
        .help(
            "for example: 24h ago, 2 weeks ago, today, 2026-11-21, 2026-11-21T08:00 or \
                 2026-11-21T08:00:00Z",
        )
        .fail(),
    }
}
