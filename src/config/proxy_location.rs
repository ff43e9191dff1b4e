//! Location of the running proxy in a config that may be invalid otherwise. Commands use it to
//! reach a proxy that still runs with the previous config.

use std::{
    ops::Range,
    path::{Path, PathBuf},
};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{base_of, read, sections::STATE_DIR};

/// Location of a proxy and its container engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyLocation {
    /// Absolute path. `None` if the file may set one that cannot be parsed: the default may belong
    /// to another proxy.
    pub state_dir: Option<PathBuf>,
    /// `admin.socket`, absolute, if it can be parsed.
    pub socket: Option<PathBuf>,
    /// `engine.host`, if the file sets one.
    pub engine: Result<Option<String>, Unreadable>,
}

/// Error: the file may set an engine, but is invalid there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the config may have an `engine.host`, but cannot be parsed there")]
pub struct Unreadable;

/// Reads these settings from a file, whatever else is invalid in it. Settings that are certainly
/// absent have their defaults.
pub fn proxy_location(path: &Path) -> ProxyLocation {
    match read(path) {
        Ok(text) => of_text(path, &text),
        Err(_) => {
            let engine = if path.exists() { Err(Unreadable) } else { Ok(None) };
            ProxyLocation { state_dir: None, socket: None, engine }
        }
    }
}

pub(super) fn of_text(path: &Path, text: &str) -> ProxyLocation {
    let (root, errors) = DeTable::parse_recoverable(text);
    let broken = errors.iter().map(|error| error.span().unwrap_or(0..text.len())).collect();
    let readable = ReadableText { text, broken };
    let base = base_of(path);
    let root = root.get_ref();
    let table = |name| match root.get(name).map(Spanned::get_ref) {
        Some(DeValue::Table(table)) => Some(table),
        _ => None,
    };
    let state_dir = readable.string("state-dir", Some(root), "state-dir");
    let socket = readable.string("admin", table("admin"), "socket");
    let engine = readable.string("engine", table("engine"), "host");
    ProxyLocation {
        state_dir: state_dir.ok().map(|dir| base.join(dir.unwrap_or(STATE_DIR))),
        socket: socket.ok().flatten().map(|socket| base.join(socket)),
        engine: engine.map(|host| host.map(str::to_owned)),
    }
}

struct ReadableText<'a> {
    text: &'a str,
    /// Ranges that are not valid TOML.
    broken: Vec<Range<usize>>,
}

impl ReadableText<'_> {
    /// String at a key, if its lines are valid: the parser's result for invalid lines is a guess.
    /// The key is certainly absent if `word`, which every spelling of it contains, occurs only in
    /// comments.
    fn string<'t>(
        &self,
        word: &str,
        table: Option<&'t DeTable<'_>>,
        key: &str,
    ) -> Result<Option<&'t str>, Unreadable> {
        let comment = |line: &Range<usize>| {
            self.text.get(line.clone()).is_some_and(|line| line.trim_start().starts_with('#'))
        };
        let mentions: Vec<_> = self
            .text
            .match_indices(word)
            .map(|(at, _)| self.lines(at..at))
            .filter(|line| !comment(line))
            .collect();
        // A key may be written with escapes.
        if ["\\u", "\\U", "\\x"].iter().any(|escape| self.text.contains(escape))
            && !self.broken.is_empty()
        {
            return Err(Unreadable);
        }
        let found = table.and_then(|table| table.get_key_value(key));
        let own = found.map(|(key, value)| self.lines(key.span().start..value.span().end));
        if mentions.iter().chain(&own).any(|lines| self.is_broken(lines)) {
            return Err(Unreadable);
        }
        match found.map(|(_, value)| value.get_ref()) {
            Some(DeValue::String(text)) => Ok(Some(text)),
            None if mentions.is_empty() => Ok(None),
            _ => Err(Unreadable),
        }
    }

    fn is_broken(&self, lines: &Range<usize>) -> bool {
        // A missing token is reported at its expected position, with an empty range.
        let touches = |wrong: &Range<usize>| {
            wrong.start <= lines.end && (lines.start < wrong.end || lines.start == wrong.start)
        };
        self.broken.iter().any(touches)
    }

    /// Whole lines of a range.
    fn lines(&self, range: Range<usize>) -> Range<usize> {
        let before = self.text.get(..range.start).unwrap_or_default();
        let after = self.text.get(range.end..).unwrap_or_default();
        let start = before.rfind('\n').map_or(0, |at| at + 1);
        start..range.end + after.find('\n').unwrap_or(after.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> ProxyLocation {
        of_text(Path::new("/etc/p/c.toml"), text)
    }

    #[test]
    fn broken_config_still_has_a_state_folder() {
        let default = Some("/etc/p/.portcullis");
        for (text, state_dir) in [
            ("", default),
            ("# state-dir = '/s'\n[servers.a\n", default),
            ("state-dir = 'state'", Some("/etc/p/state")),
            ("state-dir = '/s' # mine", Some("/s")),
            // Invalid elsewhere: after it, in a table, by the meaning of a key.
            ("state-dir = '/s'\nnonsense\n", Some("/s")),
            ("state-dir = '/s'\n[servers.a\nimage = 'x'\n", Some("/s")),
            ("state-dir = '/s'\n[servers.a]\nimage = \"x\n", Some("/s")),
            ("state-dir = '/s'\nimgae = 1\n", Some("/s")),
            // Invalid there, or of the wrong type.
            ("state-dir = '/s\n", None),
            ("state-dir = \"/s\n[servers.a]\n", None),
            ("state-dir = '/s' '/t'\n", None),
            ("state-dir '/s'\n", None),
            ("state-dir =\n", None),
            ("state-dir\n", None),
            ("state-dir = 5\n", None),
            ("state-dir = { a = 1 }\n", None),
            ("state-dir = '/s'\nstate-dir = '/t'\n", None),
            ("[x]\nstate-dir = '/s'\n", None),
            ("[x\nstate-dir = '/s'\n", None),
            ("nonsense\nstate-dir = '/s'\n", None),
            ("x = '''\nstate-dir = '/s'\n", None),
            ("x = '''\nstate-dir = '/s'\ny = '''z'''\n", None),
            ("\u{0}\u{1b}[[[", default),
        ] {
            assert_eq!(of(text).state_dir.as_deref(), state_dir.map(Path::new), "{text:?}");
        }
    }

    #[test]
    fn broken_config_still_has_socket_and_engine() {
        let found = of("[admin]\nsocket = 'run/a'\n[servers\n[engine]\nhost = 'e'\n[listen]\nx");
        assert_eq!(found.socket.as_deref(), Some(Path::new("/etc/p/run/a")));
        assert_eq!(found.engine, Ok(Some("e".to_owned())));
        assert_eq!(of("[servers.a\nhost = 'e'").engine, Ok(None));
        for text in [
            "[engine]\nhost = 'e\n",
            "[engine\nhost = 'e'\n",
            "engine.host 'e'\n",
            "engine = { host = 5 }\n",
            "x = '''\n[engine]\nhost = 'e'\n",
        ] {
            assert_eq!(of(text).engine, Err(Unreadable), "{text:?}");
        }
    }

    #[test]
    fn unreadable_file_names_no_proxy() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.toml");
        let nothing = ProxyLocation { state_dir: None, socket: None, engine: Ok(None) };
        assert_eq!(proxy_location(&path), nothing);
        std::fs::write(&path, b"state-dir = '\xff'").unwrap();
        assert_eq!(proxy_location(&path), ProxyLocation { engine: Err(Unreadable), ..nothing });
    }

    #[test]
    fn valid_config_gives_its_own_values() {
        let text = "state-dir = 's'\n[admin]\nsocket = '/run/p/a'\n[engine]\nhost = 'unix:///e'\n";
        let path = Path::new("/etc/p/c.toml");
        let config = super::super::parse(path, text).unwrap().config;
        let found = of_text(path, text);
        assert_eq!(Some(config.state_dir), found.state_dir);
        assert_eq!(config.admin.socket, found.socket);
        assert_eq!(Ok(config.engine.host), found.engine);
        let default = super::super::parse(path, "").unwrap().config;
        assert_eq!(Some(default.state_dir), of_text(path, "").state_dir);
    }
}
