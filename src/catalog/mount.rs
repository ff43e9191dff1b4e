//! Folders of this machine that a server can see.

use crate::{
    sensitive_paths::{CREDENTIALS, CREDENTIALS_AT_HOME, NEVER, NEVER_WHOLE, NEVER_WRITABLE},
    server::Mount,
};

/// Why a mount is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoMount {
    #[error("a mount is `SOURCE:TARGET`, with `:ro` or `:rw` behind it")]
    Form,
    #[error("it is a volume of the engine's: name a folder of this machine in `mounts` instead")]
    Volume,
    #[error("the target of a mount is an absolute path without `..`, and none of the system's own")]
    Target,
    #[error("who has it has this machine")]
    Machine,
    #[error("the source of a mount is an absolute path without `..`")]
    Source,
}

/// Reads `SOURCE:TARGET[:OPTIONS]`. The default is read-only.
pub(crate) fn read(text: &str) -> Result<Mount, NoMount> {
    // The letter of a drive is part of the source.
    let drive = text.get(1..3).is_some_and(|rest| rest == ":\\" || rest == ":/")
        && text.starts_with(|c: char| c.is_ascii_alphabetic());
    if drive {
        return Err(NoMount::Source);
    }
    let mut parts = text.split(':');
    let (Some(source), Some(target), options, None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(NoMount::Form);
    };
    let mut writable = false;
    for option in options.unwrap_or("").split(',') {
        match option {
            "rw" => writable = true,
            // SELinux labels and mount propagation are the engine's.
            "" | "ro" | "z" | "Z" | "cached" | "delegated" | "consistent" | "rprivate" => {}
            _ => return Err(NoMount::Form),
        }
    }
    of(source, target, writable)
}

/// A mount from its parts.
pub(crate) fn of(source: &str, target: &str, writable: bool) -> Result<Mount, NoMount> {
    if source.is_empty()
        || target.is_empty()
        || source.chars().chain(target.chars()).any(char::is_control)
    {
        return Err(NoMount::Form);
    }
    if !source.contains('/') && !source.starts_with(['.', '~']) {
        return Err(NoMount::Volume);
    }
    let climbs = |path: &str| path.split('/').any(|part| part == "..");
    if !source.starts_with('/') || climbs(source) || source.contains(':') {
        return Err(NoMount::Source);
    }
    let target_is_bad = !target.starts_with('/')
        || climbs(target)
        || target.contains(':')
        || target.trim_matches('/').is_empty()
        || ["/proc", "/sys", "/dev"].iter().any(|top| is_within(target, top));
    if target_is_bad {
        return Err(NoMount::Target);
    }
    if is_machine(source, writable) {
        return Err(NoMount::Machine);
    }
    Ok(Mount { source: clean(source), target: clean(target), writable })
}

/// Without doubled slashes and `.`.
pub(crate) fn clean(path: &str) -> String {
    let parts: Vec<&str> = path.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    format!("/{}", parts.join("/"))
}

fn is_within(path: &str, top: &str) -> bool {
    let path = clean(path);
    path == top || path.strip_prefix(top).is_some_and(|rest| rest.starts_with('/'))
}

/// Whether access gives control of the machine or all of its data: engine sockets, system folders,
/// home folders and keys. Only checks the name: the code that mounts it checks what it resolves to.
fn is_machine(source: &str, writable: bool) -> bool {
    let path = clean(source);
    let never = |top: &&str| is_within(&path, top) || is_within(top, &path);
    let home = ["/home", "/Users"].iter().any(|top| {
        path == *top
            || path.strip_prefix(&format!("{top}/")).is_some_and(|rest| !rest.contains('/'))
    });
    let keys = path.split('/').any(|part| CREDENTIALS.contains(&part));
    let keys_at_home = |within: &&str| format!("{path}/").contains(&format!("/{within}/"));
    matches!(path.as_str(), "/" | "/root")
        || home
        || keys
        || path.ends_with(".sock")
        || NEVER.iter().any(never)
        || NEVER_WHOLE.contains(&path.as_str())
        || CREDENTIALS_AT_HOME.iter().any(keys_at_home)
        || writable && NEVER_WRITABLE.iter().any(|top| is_within(&path, top))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_texts_are_parsed_or_refused() {
        let mount = |source: &str, target: &str, writable| {
            Ok(Mount { source: source.into(), target: target.into(), writable })
        };
        for (text, read) in [
            ("/srv/data:/data", mount("/srv/data", "/data", false)),
            ("/srv//data/./x:/data/:rw", mount("/srv/data/x", "/data", true)),
            ("/srv/data:/data:ro,Z", mount("/srv/data", "/data", false)),
            ("data:/data", Err(NoMount::Volume)),
            ("/srv/data", Err(NoMount::Form)),
            ("/a:/b:rw:x", Err(NoMount::Form)),
            ("/a:/b:exec", Err(NoMount::Form)),
            ("./a:/b", Err(NoMount::Source)),
            ("C:\\a:/b", Err(NoMount::Source)),
            ("/a/../etc:/b", Err(NoMount::Source)),
            ("/a:/b/../etc", Err(NoMount::Target)),
            ("/a:/proc/self", Err(NoMount::Target)),
            ("/a:/", Err(NoMount::Target)),
            ("/var/run/docker.sock:/var/run/docker.sock", Err(NoMount::Machine)),
            ("/:/host", Err(NoMount::Machine)),
            ("/etc/passwd:/x", Err(NoMount::Machine)),
            ("/home/me:/x", Err(NoMount::Machine)),
            ("/home/me/.ssh:/x", Err(NoMount::Machine)),
            ("/home/me/.netrc:/x", Err(NoMount::Machine)),
            ("/home/me/.config/gh/hosts.yml:/x", Err(NoMount::Machine)),
            ("/var/spool/cron/crontabs:/x", Err(NoMount::Machine)),
            ("/var/lib:/x", Err(NoMount::Machine)),
            ("/tmp:/x", Err(NoMount::Machine)),
            ("/usr/bin:/x:rw", Err(NoMount::Machine)),
            ("/bin:/x:rw", Err(NoMount::Machine)),
            ("/usr/share/dict:/x", mount("/usr/share/dict", "/x", false)),
            ("/tmp/box:/x", mount("/tmp/box", "/x", false)),
            ("/home/me/work:/x", mount("/home/me/work", "/x", false)),
        ] {
            assert_eq!(super::read(text), read, "{text}");
        }
    }
}
