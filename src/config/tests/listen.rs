//! Front end, trusted proxies and connection limits.

use super::*;

#[test]
fn trusted_proxies_are_addresses_and_networks() {
    for (text, shown) in [
        ("127.0.0.1", "127.0.0.1"),
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("192.0.2.1/32", "192.0.2.1"),
        ("fd00::/8", "fd00::/8"),
        ("::1", "::1"),
    ] {
        let network: ProxyNetwork = text.parse().unwrap();
        assert_eq!(network.to_string(), shown, "{text}");
    }
    for (text, why) in [
        ("localhost", "write an address"),
        ("10.0.0.0/33", "write an address"),
        ("10.0.0", "write an address"),
        ("127.0.0.1:8811", "write an address"),
        ("10.0.0.5/8", "no bits after"),
        ("0.0.0.0/0", "all addresses"),
        ("::/0", "all addresses"),
        ("::ffff:10.0.0.1", "as IPv4"),
    ] {
        let fault = text.parse::<ProxyNetwork>().unwrap_err().to_string();
        assert!(fault.contains(why), "{text}: {fault}");
    }
    let network: ProxyNetwork = "10.0.0.0/8".parse().unwrap();
    assert!(network.contains("::ffff:10.1.2.3".parse().unwrap()));
    assert!(!network.contains("11.0.0.1".parse().unwrap()));
}

#[test]
fn trusted_proxies_need_the_form_of_the_address() {
    let proxies = "[listen]\ntrusted-proxies = [\"127.0.0.1\"]\n";
    assert!(findings(proxies).contains("2:1 [config-conflict] the form in which these proxies"));
    let source = "[listen]\nclient-address = \"forwarded\"\n";
    assert!(findings(source).contains("2:1 [config-conflict] this has no meaning without"));
    assert_eq!(findings(&format!("{proxies}client-address = \"forwarded\"\n")), "");
    let both = format!("{proxies}client-address = [\"forwarded\", \"x-forwarded-for\"]\n");
    assert!(findings(&both).contains("3:18 [config-bad-value]"), "{}", findings(&both));
    let everybody = "[listen]\ntrusted-proxies = [\"0.0.0.0/0\"]\nclient-address = \"forwarded\"\n";
    assert!(findings(everybody).contains("2:20 [config-bad-value] this trusts all addresses"));
}

#[test]
fn calls_without_a_key_under_a_public_name_need_confirmation() {
    let text = |host: &str, more: &str| {
        format!("[listen]\nanonymous = true\nallowed-hosts = [\"{host}\"]\n{more}")
    };
    let found = findings(&text("mcp.example.com", ""));
    assert!(found.contains("3:18 [config-unsafe] anyone who reaches `mcp.example.com`"), "{found}");
    for host in ["localhost:8811", "127.0.0.1", "[::1]:8811"] {
        assert_eq!(findings(&text(host, "")), "", "{host}");
    }
    assert_eq!(findings(&text("mcp.example.com", "anonymous-beyond-loopback = true\n")), "");
}

#[test]
fn connection_limits_leave_room_for_clients_with_a_key() {
    let bounds = |limits: ConnectionLimits, most| {
        let bounds = limits.bounds(most);
        assert_eq!(bounds.total(), bounds.unauthenticated + bounds.authenticated);
        (
            bounds.unauthenticated,
            bounds.unauthenticated_per_network,
            bounds.authenticated,
            bounds.per_client,
        )
    };
    let default = ConnectionLimits::default();
    assert_eq!(bounds(default, usize::MAX), (1_024, 512, 3_072, 512));
    assert_eq!(bounds(default, 400), (100, 50, 300, 50));
    assert_eq!(bounds(default, 0), (2, 1, 6, 1));
    let wide = ConnectionLimits { unauthenticated: Some(4_000), per_client: Some(96), ..default };
    assert_eq!(bounds(wide, usize::MAX), (4_000, 2_000, 96, 96));
    for (line, room) in [
        ("unauthenticated = 4096", "`total` leaves 4095"),
        ("unauthenticated-per-network = 1025", "`unauthenticated` leaves 1024"),
        ("per-client = 3073", "leaves 3072"),
    ] {
        let found = findings(&format!("[limits.connections]\n{line}\n"));
        assert!(found.contains("2:1 [config-conflict]") && found.contains(room), "{found}");
    }
    assert_eq!(findings("[limits.connections]\ntotal = 100\nper-client = 75\n"), "");
}
