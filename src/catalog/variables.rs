//! Variables that change what a program runs.

/// Variables that make a program run other code. They are never set.
pub(crate) fn loads_code(name: &str) -> bool {
    name.starts_with("LD_")
        || name.starts_with("DYLD_")
        || matches!(
            name,
            "NODE_OPTIONS"
                | "BASH_ENV"
                | "ENV"
                | "PYTHONSTARTUP"
                | "PYTHONINSPECT"
                | "PERL5OPT"
                | "RUBYOPT"
                | "JAVA_TOOL_OPTIONS"
                | "GCONV_PATH"
                | "PATH"
        )
}

/// Whether a variable changes what a server runs: the source of its packages, its modules, or the
/// authorities that it trusts for them.
pub(crate) fn changes_what_runs(name: &str) -> bool {
    const BEGINNINGS: [&str; 6] = ["NPM_CONFIG_", "YARN_", "COREPACK_", "UV_", "PIP_", "XDG_"];
    const NAMES: [&str; 15] = [
        // Folder of the settings of npm, Yarn, pip and git.
        "HOME",
        "NODE_PATH",
        "NODE_EXTRA_CA_CERTS",
        "NODE_TLS_REJECT_UNAUTHORIZED",
        "BUN_CONFIG_REGISTRY",
        "PYTHONPATH",
        "PYTHONHOME",
        "PYTHONUSERBASE",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "REQUESTS_CA_BUNDLE",
        "CURL_CA_BUNDLE",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
    ];
    // npm, and most programs that use a proxy, read them in either case.
    let name = name.to_ascii_uppercase();
    NAMES.contains(&name.as_str()) || BEGINNINGS.iter().any(|beginning| name.starts_with(beginning))
}
