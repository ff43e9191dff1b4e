//! Strict parser of request lines: one of the calls that Portcullis makes, or a refusal.

use http::{Method, Uri};

use crate::{
    NAME,
    refusal::{Code, Refusal, shown},
};

/// Oldest supported version of the API. In older ones the same requests mean other things.
const MIN_API_VERSION: u32 = 41;
const MAX_TARGET_BYTES: usize = 4096;
/// First segments of paths without a version, as bollard sends them.
const UNVERSIONED: [&str; 4] = ["version", "info", "images", "containers"];

/// A parsed request: base path and call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiRequest {
    /// `/v1.41`, or empty for the engine's own version.
    pub base: String,
    pub call: Call,
}

/// The calls that Portcullis makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    Version,
    Info,
    InspectImage(String),
    Pull { image: String, tag: Option<String>, platform: Option<String> },
    Load,
    List,
    Create { name: String },
    Container { container: String, act: Act },
}

/// Action on a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Act {
    Inspect,
    Start,
    Attach { stdin: bool, stdout: bool, stderr: bool },
    Wait { condition: String },
    Kill { signal: String },
    Remove { force: bool, volumes: bool },
    Stats,
}

impl Call {
    /// Short description for logs.
    pub fn words(&self) -> &'static str {
        match self {
            Self::Version => "version",
            Self::Info => "info",
            Self::InspectImage(_) => "inspect an image",
            Self::Pull { .. } => "pull an image",
            Self::Load => "load an image",
            Self::List => "list containers",
            Self::Create { .. } => "create a container",
            Self::Container { act, .. } => match act {
                Act::Inspect => "inspect a container",
                Act::Start => "start a container",
                Act::Attach { .. } => "attach to a container",
                Act::Wait { .. } => "wait for a container",
                Act::Kill { .. } => "signal a container",
                Act::Remove { .. } => "remove a container",
                Act::Stats => "a container's use",
            },
        }
    }
}

/// Parses method and target.
pub fn read(method: &Method, uri: &Uri) -> Result<ApiRequest, Refusal> {
    let malformed = |why: &str| Err(Refusal::new(Code::Malformed, why));
    if uri.scheme().is_some() || uri.authority().is_some() {
        return malformed("the target is not a path");
    }
    let path = uri.path();
    if path.len() + uri.query().map_or(0, str::len) > MAX_TARGET_BYTES {
        return malformed("the target is too long");
    }
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"._:/@-".contains(&b);
    if !path.starts_with('/') || !path.bytes().all(plain) {
        return malformed("the path has characters that Portcullis never uses in a path");
    }
    let segments: Vec<&str> = path.split('/').skip(1).collect();
    if !is_whole(segments.iter().copied()) {
        return malformed("a part of the path is empty, `.` or `..`");
    }
    let (base, rest) = match segments.split_first() {
        Some((version, rest)) if is_version(version) => (format!("/{version}"), rest),
        Some((first, _)) if UNVERSIONED.contains(first) => (String::new(), segments.as_slice()),
        _ => return Err(other(method, &segments)),
    };
    let mut query = Query::of(uri.query().unwrap_or(""))?;
    let call = call(method, rest, &mut query)?;
    query.end()?;
    Ok(ApiRequest { base, call })
}

/// Whether the segments of a path are literal for every parser.
pub fn is_whole<'a>(mut segments: impl Iterator<Item = &'a str>) -> bool {
    segments.all(|segment| !matches!(segment, "" | "." | ".."))
}

fn is_version(segment: &str) -> bool {
    let minor = segment.strip_prefix("v1.");
    minor.is_some_and(|minor| {
        minor.len() == 2
            && minor.bytes().all(|b| b.is_ascii_digit())
            && minor.parse::<u32>().is_ok_and(|minor| minor >= MIN_API_VERSION)
    })
}

fn call(method: &Method, path: &[&str], query: &mut Query) -> Result<Call, Refusal> {
    let (get, post) = (method == Method::GET, method == Method::POST);
    Ok(match path {
        ["version"] if get => Call::Version,
        ["info"] if get => Call::Info,
        ["images", "load"] if post => {
            query.flag("quiet")?;
            Call::Load
        }
        ["images", "create"] if post => Call::Pull {
            image: query.required("fromImage")?,
            tag: query.take("tag").filter(|tag| !tag.is_empty()),
            platform: query.platform()?,
        },
        ["images", name @ .., "json"] if get && !name.is_empty() => {
            Call::InspectImage(name.join("/"))
        }
        ["containers", "json"] if get => {
            query.flag("all")?;
            query.off("size")?;
            // Ignored: the answer has only this guard's containers.
            query.take("filters");
            Call::List
        }
        ["containers", "create"] if post => {
            let name = query.required("name")?;
            if !is_name(&name) || !name.starts_with(NAME) {
                let why = format!("a container's name must begin with `{NAME}`");
                return Err(Refusal::new(Code::Profile, why));
            }
            // With a platform, the engine may create a container from another image than the
            // checked one.
            if query.platform()?.is_some() {
                return Err(Refusal::new(Code::Call, "`platform` is never set by Portcullis here"));
            }
            Call::Create { name }
        }
        ["containers", container, rest @ ..] if is_name(container) => {
            let act = match rest {
                ["json"] if get => {
                    query.off("size")?;
                    Act::Inspect
                }
                ["start"] if post => Act::Start,
                ["attach"] if post => {
                    query.off("logs")?;
                    if !query.flag("stream")? {
                        return Err(Refusal::new(Code::Call, "attaching without `stream`"));
                    }
                    Act::Attach {
                        stdin: query.flag("stdin")?,
                        stdout: query.flag("stdout")?,
                        stderr: query.flag("stderr")?,
                    }
                }
                ["wait"] if post => Act::Wait {
                    condition: query
                        .one_of("condition", &["not-running", "next-exit", "removed"])?,
                },
                ["kill"] if post => {
                    Act::Kill { signal: query.one_of("signal", &["SIGTERM", "SIGKILL"])? }
                }
                ["stats"] if get => {
                    query.off("stream")?;
                    query.flag("one-shot")?;
                    Act::Stats
                }
                [] if method == Method::DELETE => {
                    query.off("link")?;
                    Act::Remove { force: query.flag("force")?, volumes: query.flag("v")? }
                }
                _ => return Err(other(method, path)),
            };
            Call::Container { container: (*container).to_owned(), act }
        }
        _ => return Err(other(method, path)),
    })
}

fn other(method: &Method, path: &[&str]) -> Refusal {
    let why =
        format!("Portcullis never sends {} /{}", shown(method.as_str()), shown(&path.join("/")));
    Refusal::new(Code::Call, why)
}

/// Whether the text is a name or an id of a container.
fn is_name(text: &str) -> bool {
    text.len() <= 200
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
}

/// Query parameters, each known and present once.
struct Query(Vec<(String, String)>);

impl Query {
    fn of(text: &str) -> Result<Self, Refusal> {
        let mut parameters: Vec<(String, String)> = Vec::new();
        for (name, value) in url::form_urlencoded::parse(text.as_bytes()).into_owned() {
            if parameters.iter().any(|(other, _)| other.eq_ignore_ascii_case(&name)) {
                let why = format!("the parameter `{}` is duplicated", shown(&name));
                return Err(Refusal::new(Code::Malformed, why));
            }
            parameters.push((name, value));
        }
        Ok(Self(parameters))
    }

    fn take(&mut self, name: &str) -> Option<String> {
        let at = self.0.iter().position(|(other, _)| other == name)?;
        Some(self.0.swap_remove(at).1)
    }

    fn required(&mut self, name: &str) -> Result<String, Refusal> {
        self.take(name).filter(|value| !value.is_empty()).ok_or_else(|| {
            Refusal::new(Code::Malformed, format!("the parameter `{name}` is missing"))
        })
    }

    fn flag(&mut self, name: &str) -> Result<bool, Refusal> {
        match self.take(name).as_deref() {
            None | Some("false" | "0") => Ok(false),
            Some("true" | "1") => Ok(true),
            Some(_) => {
                Err(Refusal::new(Code::Malformed, format!("`{name}` is neither true nor false")))
            }
        }
    }

    /// Checks a flag that is never set.
    fn off(&mut self, name: &str) -> Result<(), Refusal> {
        if self.flag(name)? {
            return Err(Refusal::new(Code::Call, format!("`{name}` is never set by Portcullis")));
        }
        Ok(())
    }

    fn one_of(&mut self, name: &str, allowed: &[&str]) -> Result<String, Refusal> {
        let value = self.required(name)?;
        if !allowed.contains(&value.as_str()) {
            let why = format!("`{name}` is not one of {}", allowed.join(", "));
            return Err(Refusal::new(Code::Call, why));
        }
        Ok(value)
    }

    fn platform(&mut self) -> Result<Option<String>, Refusal> {
        let platform = self.take("platform").filter(|platform| !platform.is_empty());
        let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"/._-".contains(&b);
        if platform.as_ref().is_some_and(|p| p.len() > 64 || !p.bytes().all(word)) {
            return Err(Refusal::new(Code::Malformed, "`platform` is not a platform"));
        }
        Ok(platform)
    }

    fn end(self) -> Result<(), Refusal> {
        match self.0.first() {
            None => Ok(()),
            Some((name, _)) => {
                let why = format!("Portcullis never sends the parameter `{}` here", shown(name));
                Err(Refusal::new(Code::Call, why))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(method: &str, target: &str) -> Result<&'static str, &'static str> {
        let Ok(uri) = target.parse::<Uri>() else { return Err("no-uri") };
        let method = Method::from_bytes(method.as_bytes()).expect("a method");
        match read(&method, &uri) {
            Ok(route) => Ok(route.call.words()),
            Err(refusal) => Err(refusal.code.as_str()),
        }
    }

    #[test]
    fn calls_of_portcullis_are_parsed() {
        let id = "0123456789abcdef".repeat(4);
        for (method, target, words) in [
            ("GET", "/v1.41/version", "version"),
            ("GET", "/version", "version"),
            ("GET", "/containers/a/json", "inspect a container"),
            ("GET", "/v1.52/info", "info"),
            ("GET", "/v1.41/images/a.example:5000/b/c@sha256:00/json", "inspect an image"),
            ("GET", "/v1.41/images/json/json", "inspect an image"),
            ("POST", "/v1.41/images/load?quiet=true", "load an image"),
            ("POST", "/v1.41/images/create?fromImage=a&tag=b&platform=", "pull an image"),
            ("GET", "/v1.41/containers/json?all=true&size=false&filters=%7B%7D", "list containers"),
            (
                "POST",
                "/v1.41/containers/create?name=portcullis-a-1&platform=",
                "create a container",
            ),
            ("GET", &format!("/v1.41/containers/{id}/json"), "inspect a container"),
            ("POST", "/v1.41/containers/a/start", "start a container"),
            (
                "POST",
                "/v1.41/containers/a/attach?logs=false&stream=true&stdin=true&stdout=true&stderr=true",
                "attach to a container",
            ),
            ("POST", "/v1.41/containers/a/wait?condition=next-exit", "wait for a container"),
            ("POST", "/v1.41/containers/a/kill?signal=SIGTERM", "signal a container"),
            ("DELETE", "/v1.41/containers/a?v=true&force=true&link=false", "remove a container"),
            ("GET", "/v1.41/containers/a/stats?stream=false&one-shot=true", "a container's use"),
        ] {
            assert_eq!(code(method, target), Ok(words), "{method} {target}");
        }
    }

    #[test]
    fn ambiguous_request_lines_are_refused() {
        for (method, target, expected) in [
            ("GET", "/v1.41//containers/json", "guard-malformed"),
            ("GET", "//v1.41/containers/json", "guard-malformed"),
            ("GET", "/v1.41/containers/json/", "guard-malformed"),
            ("GET", "/v1.41/../containers/json", "guard-malformed"),
            ("GET", "/v1.41/./containers/json", "guard-malformed"),
            ("GET", "/v1.41/containers/a/../../exec", "guard-malformed"),
            ("GET", "/v1.41/images/../containers/a/json", "guard-malformed"),
            ("GET", "/v1.41/%63ontainers/json", "guard-malformed"),
            ("GET", "/v1.41/containers%2fjson", "guard-malformed"),
            ("GET", "/v1.41/containers;x/json", "guard-malformed"),
            ("GET", "/v1.41/containers/json?all=1&all=0", "guard-malformed"),
            ("GET", "/v1.41/containers/json?all=1&ALL=0", "guard-malformed"),
            ("GET", "/v1.41/containers/json?all=1&%61ll=0", "guard-malformed"),
            ("GET", "/v1.41/containers/json?All=1", "guard-call"),
            ("GET", "/v1.41/containers/json?all=yes", "guard-malformed"),
            ("GET", "http://docker/v1.41/containers/json", "guard-malformed"),
            ("CONNECT", "docker:80", "guard-malformed"),
            ("OPTIONS", "*", "guard-malformed"),
            ("GET", "/exec/a/json", "guard-call"),
            ("GET", "/v1.41/v1.41/containers/json", "guard-call"),
            ("GET", "/v1.40/containers/json", "guard-call"),
            ("GET", "/v1.12/containers/json", "guard-call"),
            ("GET", "/v1.041/containers/json", "guard-call"),
            ("GET", "/v2.41/containers/json", "guard-call"),
            ("GET", "/V1.41/containers/json", "guard-call"),
            ("get", "/v1.41/containers/json", "guard-call"),
            ("HEAD", "/v1.41/containers/json", "guard-call"),
            ("GET", "/v1.41/images/json", "guard-call"),
            ("GET", "/v1.41/images/a/get", "guard-call"),
            ("POST", "/v1.41/images/a/json", "guard-call"),
            ("POST", "/v1.41/containers/a/start?detachKeys=x", "guard-call"),
            ("POST", "/v1.41/containers/a/attach?stream=true&logs=true", "guard-call"),
            ("POST", "/v1.41/containers/a/kill?signal=SIGSTOP", "guard-call"),
            ("POST", "/v1.41/containers/-a/kill?signal=SIGTERM", "guard-call"),
            ("DELETE", "/v1.41/containers/a?link=true", "guard-call"),
            ("POST", "/v1.41/containers/create?name=other", "guard-profile"),
            (
                "POST",
                "/v1.41/containers/create?name=portcullis-a-1&platform=linux/386",
                "guard-call",
            ),
            ("POST", "/v1.41/containers/create", "guard-malformed"),
            ("POST", "/v1.41/images/create?fromSrc=-", "guard-malformed"),
            ("POST", "/v1.41/images/create?fromImage=a&fromSrc=http://b", "guard-call"),
            ("POST", "/v1.41/images/create?fromImage=a&changes=CMD+x", "guard-call"),
        ] {
            assert_eq!(code(method, target), Err(expected), "{method} {target}");
        }
    }
}
