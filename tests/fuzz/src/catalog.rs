//! Descriptions of servers that others wrote: catalogs, profiles, desktop clients' files.

use portcullis_catalog::{
    Image, Options, Run, describe, enabled, is_legal, read, settings, tool_lists,
    write::{add, names, policy},
};

/// All that reads, over the same text.
pub fn target(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    let _ = (enabled(text), settings(text), tool_lists(text), describe(text));
    let Ok(found) = read(text, &Options::default()) else { return };
    let lines = u32::try_from(text.lines().count() + 1).unwrap_or(u32::MAX);
    for entry in found.servers {
        let server = match entry.server {
            Ok(server) => server,
            Err(problems) => {
                assert!(!problems.is_empty(), "refused without a reason");
                for place in problems.iter().filter_map(|problem| problem.place) {
                    assert!(place.line <= lines, "a place beyond the file");
                }
                continue;
            }
        };
        assert!(is_legal(&server.name), "a name that the config would not take");
        for mount in &server.mounts {
            let source = &mount.source;
            assert!(
                source.starts_with('/') && source != "/" && !source.ends_with(".sock"),
                "{source}"
            );
        }
        for secret in server.secrets.values() {
            let variable = secret.from.strip_prefix("env:").unwrap_or("-");
            let legal = variable.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
            assert!(legal, "a secret comes from something other than a variable");
        }
        if let Run::Image { image, .. } = &server.run {
            assert_eq!(image.to_string().parse::<Image>().as_ref(), Ok(image));
        }
        // What is written is one entry of that name, whatever is in it.
        let written = add("[servers.first]\ncommand = [\"x\"]\n", &server);
        if let Ok(written) = written {
            assert_eq!(
                names(&written).as_deref(),
                Ok(&["first".to_owned(), server.name.clone()][..])
            );
        }
        let policies = policy(&server);
        assert!(policies.lines().all(|line| !line.contains('\r')), "a line within a line");
    }
}
