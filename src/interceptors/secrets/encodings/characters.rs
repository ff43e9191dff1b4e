//! Characters that another character is written or shown as: percent escapes, HTML entities,
//! invisible characters, compatibility forms and homoglyphs.

use std::sync::OnceLock;

use unicode_normalization::UnicodeNormalization;
use unicode_security::skeleton;

use super::{
    digits::hex_byte,
    view::{Builder, View},
};

/// View with percent escapes, HTML entities and characters other than ASCII resolved. Bytes that are
/// not UTF-8 are left out.
pub(super) fn characters(text: &[u8]) -> Option<View> {
    let is_plain = text.is_ascii() && memchr::memchr(0, text).is_none();
    let mut builder = Builder::new(text);
    let mut at = 0;
    let mut word = Word::default();
    loop {
        let rest = text.get(at..).unwrap_or_default();
        let next = match is_plain {
            true => memchr::memchr2(b'%', b'&', rest),
            false => rest.iter().position(|b| matches!(b, b'%' | b'&' | 0) || !b.is_ascii()),
        };
        let Some(next) = next else { break };
        at += next;
        let rest = rest.get(next..).unwrap_or_default();
        let mut buffer = [0; 4];
        match rest {
            [b'%', digits @ ..] => match hex_byte(digits) {
                Some(byte) => {
                    builder.unit(at..at + 3, &[byte]);
                    at += 3;
                }
                None => at += 1,
            },
            [b'&', ..] => match entity(rest) {
                Some((len, c)) => {
                    builder.unit(at..at + len, c.encode_utf8(&mut buffer).as_bytes());
                    at += len;
                }
                None => at += 1,
            },
            [0, ..] => {
                builder.unit(at..at + 1, &[]);
                at += 1;
            }
            _ => {
                let Some(c) = first_char(rest) else {
                    builder.unit(at..at + 1, &[]);
                    at += 1;
                    continue;
                };
                let end = at + c.len_utf8();
                let counts = |form: &&Form| match form.context {
                    Context::Any => true,
                    Context::Token => is_token_beside(text, at, end),
                    Context::Word => word.has_ascii(text, at),
                };
                if let Some(form) = plain_form(c).filter(counts) {
                    builder.unit(at..end, form.text.as_bytes());
                }
                at = end;
            }
        }
    }
    builder.units()
}

/// Whether a text begins with a percent escape, an HTML entity or a backslash.
pub(super) fn is_escape(text: &[u8]) -> bool {
    match text {
        [b'%', digits @ ..] => hex_byte(digits).is_some(),
        [b'&', ..] => entity(text).is_some(),
        _ => true,
    }
}

/// Character at the start of a text, if it is UTF-8 there.
fn first_char(text: &[u8]) -> Option<char> {
    let start = text.get(..text.len().min(4))?;
    start.utf8_chunks().next()?.valid().chars().next()
}

/// The last word examined, so that each is examined once.
#[derive(Default)]
struct Word {
    end: usize,
    has_ascii: bool,
}

impl Word {
    /// Whether the word at a position has ASCII letters or digits.
    fn has_ascii(&mut self, text: &[u8], at: usize) -> bool {
        if at >= self.end {
            let is_end = |b: &u8| b.is_ascii() && !b.is_ascii_graphic();
            let (before, after) = text.split_at(at.min(text.len()));
            let before = before.iter().rev().take(64).take_while(|b| !is_end(b));
            let length = after.iter().position(is_end).unwrap_or(after.len());
            let mut word = before.chain(after.get(..length).unwrap_or_default());
            *self = Self { end: at + length, has_ascii: word.any(u8::is_ascii_alphanumeric) };
        }
        self.has_ascii
    }
}

/// Whether an ASCII character or a fullwidth one is before or after a range. Chinese and Japanese
/// sentences have fullwidth punctuation beside other letters.
fn is_token_beside(text: &[u8], start: usize, end: usize) -> bool {
    let is_wide = |bytes: &[u8]| matches!(bytes, [0xef, 0xbc | 0xbd, _]);
    let before = text.get(..start).unwrap_or_default();
    let after = text.get(end..).unwrap_or_default();
    before.last().is_some_and(u8::is_ascii)
        || after.first().is_some_and(u8::is_ascii)
        || before.last_chunk::<3>().is_some_and(|last| is_wide(last))
        || after.first_chunk::<3>().is_some_and(|first| is_wide(first))
}

/// ASCII text that a character is shown as, or nothing for one that is not shown.
struct Form {
    text: Box<str>,
    context: Context,
}

/// Place where a character counts as its plain form.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Context {
    Any,
    /// Beside ASCII or fullwidth characters.
    Token,
    /// In a word with ASCII letters or digits: other words are words of a language.
    Word,
}

/// Number of characters of a [`BLOCKS`] entry.
const BLOCK_CHARS: usize = 256;

/// Plain forms of the characters of a block.
type Block = Box<[Option<Form>]>;

/// Plain forms of each block of characters, computed at the first character of the block. `None`
/// for a block without any.
static BLOCKS: [OnceLock<Option<Block>>; 0x11_0000 / BLOCK_CHARS] =
    [const { OnceLock::new() }; 0x11_0000 / BLOCK_CHARS];

/// Plain form of a character other than ASCII.
fn plain_form(c: char) -> Option<&'static Form> {
    let code = u32::from(c) as usize;
    let block = BLOCKS.get(code / BLOCK_CHARS)?.get_or_init(|| {
        let first = code - code % BLOCK_CHARS;
        let all = (first..first + BLOCK_CHARS)
            .map(|code| u32::try_from(code).ok().and_then(char::from_u32).and_then(computed_form));
        let all: Block = all.collect();
        all.iter().any(Option::is_some).then_some(all)
    });
    block.as_ref()?.get(code % BLOCK_CHARS)?.as_ref()
}

fn computed_form(c: char) -> Option<Form> {
    let form = |text: String, context| Some(Form { text: text.into(), context });
    if is_invisible(c) {
        return form(String::new(), Context::Any);
    }
    if let tag @ 0xe_0020..=0xe_007e = u32::from(c) {
        return form(char::from_u32(tag - 0xe_0000)?.into(), Context::Any);
    }
    // Typographic quotes and dots are in no token, and in much text.
    let counts = |text: &str| {
        text.is_ascii() && text.contains(|c: char| c.is_ascii_alphanumeric() || "_-".contains(c))
    };
    let folded = std::iter::once(c).nfkc().collect::<String>();
    if counts(&folded) {
        return form(folded, Context::Any);
    }
    if matches!(c, '\u{ff01}'..='\u{ff5e}') {
        return form(folded, Context::Token);
    }
    let mut buffer = [0; 4];
    let shown: String = skeleton(c.encode_utf8(&mut buffer)).collect();
    // To Unicode, a capital I and a small L look alike. Tokens distinguish them.
    let shown = if shown == "l" && c.is_uppercase() { "I".to_owned() } else { shown };
    if counts(&shown) { form(shown, Context::Word) } else { None }
}

/// Whether a character takes no room: zero-width characters, soft hyphens, joiners, marks of
/// direction, variation selectors, fillers.
fn is_invisible(c: char) -> bool {
    matches!(
        c,
        '\u{ad}'
            | '\u{34f}'
            | '\u{61c}'
            | '\u{115f}'
            | '\u{1160}'
            | '\u{17b4}'
            | '\u{17b5}'
            | '\u{180b}'..='\u{180f}'
            | '\u{200b}'..='\u{200f}'
            | '\u{202a}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{3164}'
            | '\u{fe00}'..='\u{fe0f}'
            | '\u{feff}'
            | '\u{ffa0}'
            | '\u{fff9}'..='\u{fffb}'
            | '\u{1d173}'..='\u{1d17a}'
            | '\u{e0001}'
            | '\u{e007f}'
            | '\u{e0100}'..='\u{e01ef}'
    )
}

/// HTML entity at the start of a text: its length, and its character. Numeric ones, and the names
/// of ASCII punctuation.
fn entity(text: &[u8]) -> Option<(usize, char)> {
    const NAMES: [(&str, char); 30] = [
        ("amp", '&'),
        ("lt", '<'),
        ("gt", '>'),
        ("quot", '"'),
        ("apos", '\''),
        ("nbsp", ' '),
        ("lowbar", '_'),
        ("UnderBar", '_'),
        ("hyphen", '-'),
        ("dash", '-'),
        ("shy", '\u{ad}'),
        ("zwnj", '\u{200c}'),
        ("zwj", '\u{200d}'),
        ("colon", ':'),
        ("semi", ';'),
        ("period", '.'),
        ("comma", ','),
        ("sol", '/'),
        ("bsol", '\\'),
        ("plus", '+'),
        ("equals", '='),
        ("commat", '@'),
        ("num", '#'),
        ("percnt", '%'),
        ("dollar", '$'),
        ("excl", '!'),
        ("Tab", '\t'),
        ("NewLine", '\n'),
        ("lpar", '('),
        ("rpar", ')'),
    ];
    // Browsers accept a numeric entity without its semicolon.
    if let Some(number) = text.strip_prefix(b"&#") {
        let (start, radix) = match number.first() {
            Some(b'x' | b'X') => (1, 16),
            _ => (0, 10),
        };
        let digits = number.get(start..)?;
        // Any number of zeros may precede.
        let zeros = digits.iter().take_while(|b| **b == b'0').count();
        let rest = digits.get(zeros..)?.iter().take(8);
        let length = zeros + rest.take_while(|b| char::from(**b).is_digit(radix)).count();
        let value = std::str::from_utf8(digits.get(..length)?).ok()?;
        let c = char::from_u32(u32::from_str_radix(value, radix).ok()?)?;
        let closed = usize::from(digits.get(length) == Some(&b';'));
        return Some((2 + start + length + closed, c));
    }
    let name = text.get(1..text.len().min(12))?;
    let name = name.get(..memchr::memchr(b';', name)?)?;
    let (_, c) = NAMES.iter().find(|(known, _)| known.as_bytes() == name)?;
    Some((name.len() + 2, *c))
}
