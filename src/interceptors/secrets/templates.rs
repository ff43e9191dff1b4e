//! Generates example secrets from templates, because no file may contain a secret.

/// Small pseudo-random generator (xorshift64*), deterministic by its seed.
pub(super) struct Seed(u64);

impl Seed {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(super) fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % limit
    }

    fn draw(&mut self, alphabet: &str, length: usize) -> String {
        let alphabet: Vec<char> = alphabet.chars().collect();
        (0..length).map(|_| alphabet[self.below(alphabet.len())]).collect()
    }
}

const DIGITS: &str = "0123456789";
const LOWER: &str = "abcdefghijklmnopqrstuvwxyz";
const UPPER: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZ";

/// Output of a generator; `None` if there is none with that name.
fn generate(name: &str, length: usize, before: &str, seed: &mut Seed) -> Option<String> {
    let base62 = format!("{DIGITS}{UPPER}{LOWER}");
    Some(match name {
        "base62" => seed.draw(&base62, length),
        "base64raw" => seed.draw(&format!("{base62}+/"), length),
        // Whole groups of four, as an encoder writes them.
        "base64" => seed.draw(&format!("{base62}+/"), length.div_ceil(4) * 4),
        "base64url" => seed.draw(&format!("{base62}-_"), length),
        "base64lines" => {
            let text = seed.draw(&format!("{base62}+/"), length);
            text.as_bytes()
                .chunks(64)
                .map(|line| String::from_utf8_lossy(line).into_owned())
                .collect::<Vec<_>>()
                .join("\n")
        }
        "base36" => seed.draw(&format!("{DIGITS}{LOWER}"), length),
        "base32" => seed.draw(&format!("{UPPER}234567"), length),
        "bech32" => seed.draw("QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L", length),
        "upper36" => seed.draw(&format!("{DIGITS}{UPPER}"), length),
        "hex" => seed.draw("0123456789abcdef", length),
        "digits" => seed.draw(DIGITS, length),
        "digit19" => seed.draw("123456789", length),
        "alpha" => seed.draw(&format!("{LOWER}{UPPER}"), length),
        "lower" => seed.draw(LOWER, length),
        "upper" => seed.draw(UPPER, length),
        "luhn" => {
            let run = before.bytes().rev().take_while(|b| b.is_ascii_digit() || *b == b' ').count();
            let digits = [&before.as_bytes()[before.len() - run..], b"0"].concat();
            ((10 - super::rules::luhn(&digits)) % 10).to_string()
        }
        // Replaced when the rest is known.
        "iban" => "\u{1}".into(),
        "x" => "x".repeat(length),
        "sp" => " ".into(),
        "nl" => "\n".into(),
        "colon" => ":".into(),
        "jwt" => {
            let mut part = |length| seed.draw(&format!("{base62}-_"), length);
            format!("eyJ{}.eyJ{}.{}", part(33), part(80), part(43))
        }
        "crc32" => {
            let random = &before.as_bytes()[before.len() - 30..];
            String::from_utf8_lossy(&super::rules::base62(crc32fast::hash(random))).into_owned()
        }
        _ => return None,
    })
}

/// Template with every generator name in braces replaced by its output.
pub(super) fn expand(template: &str, seed: &mut Seed) -> String {
    let mut out = String::new();
    let mut rest = template;
    while let Some(open) = rest.find('{') {
        out.push_str(&rest[..open]);
        rest = &rest[open..];
        let made = rest.find('}').and_then(|close| {
            let (name, length) = rest[1..close].split_once(':').unwrap_or((&rest[1..close], "0"));
            Some((generate(name, length.parse().ok()?, &out, seed)?, close))
        });
        match made {
            Some((text, close)) => {
                out.push_str(&text);
                rest = &rest[close + 1..];
            }
            None => {
                out.push('{');
                rest = &rest[1..];
            }
        }
    }
    with_check_digits(out + rest)
}

/// Text with the check digits of an account number in place of their mark.
fn with_check_digits(text: String) -> String {
    let Some((before, after)) = text.split_once('\u{1}') else { return text };
    let length = after.bytes().take_while(u8::is_ascii_alphanumeric).count();
    let country = &before[before.len() - 2..];
    let number = format!("{country}00{}", &after[..length]);
    let digits = 98 - super::rules::iban(number.as_bytes());
    format!("{before}{digits:02}{after}")
}
