use super::*;

#[test]
fn names_of_secrets_are_recognized() {
    // From schemas of MCP servers, their environment, and files of well-known programs.
    for name in [
        "password",
        "Password",
        "db_password",
        "PGPASSWORD",
        "POSTGRES_PASSWORD",
        "MYSQL_PASS",
        "passwd",
        "pwd",
        "passphrase",
        "newPassword",
        "passwordConfirmation",
        "password2",
        "user[password]",
        "api_key",
        "apiKey",
        "APIKey",
        "apikey",
        "x-api-key",
        "OPENAI_API_KEY",
        "BRAVE_API_KEY",
        "API_KEY_1",
        "Ocp-Apim-Subscription-Key",
        "token",
        "GITHUB_PERSONAL_ACCESS_TOKEN",
        "SLACK_BOT_TOKEN",
        "refreshToken",
        "access_token",
        "authToken",
        "//registry.example/:_authToken",
        "csrf_token",
        "tokens",
        "secret",
        "client_secret",
        "clientSecret",
        "secretAccessKey",
        "AWS_SECRET_ACCESS_KEY",
        "aws.secret.access.key",
        "SecretString",
        "secret_key_base",
        "private_key",
        "privateKeyPem",
        "ssh-private-key",
        "client-key-data",
        "AccountKey",
        "SUPABASE_SERVICE_ROLE_KEY",
        "authorization",
        "Proxy-Authorization",
        "auth",
        "_auth",
        "auth_header",
        "Cookie",
        "Set-Cookie",
        "session_cookie",
        "bearer",
        "jwt",
        "credentials",
        "awsCredentials",
        "creds",
        "otp",
        "one_time_code",
        "pin",
        "card_pin",
        "recoveryCodes",
        "seed phrase",
        "sig",
        "X-Amz-Signature",
        "code_verifier",
        "password_for_backup",
        "secret_id",
        "GITHUB_PAT",
        "passWord",
        "passPhrase",
        "passCode",
        "dbpass",
        "jwt_key",
        "storage_key",
    ] {
        assert!(is_secret(name), "{name}");
    }
}

#[test]
fn other_names_are_not_secrets() {
    for name in [
        "",
        "name",
        "max_tokens",
        "maxTokens",
        "max_new_tokens_total",
        "token_count",
        "tokenCount",
        "tokens_used",
        "prompt_tokens",
        "completionTokens",
        "total_tokens",
        "token_type",
        "PublicKeyToken",
        "clientRequestToken",
        "LifecycleActionToken",
        "token_endpoint",
        "token_url",
        "eos_token",
        "next_page_token",
        "nextToken",
        "pageToken",
        "nextpagetoken",
        "continuationToken",
        "progressToken",
        "passwordless",
        "password_policy",
        "password_file",
        "passwordHint",
        "min_password_length",
        "tokenizer",
        "detokenize",
        "secretary",
        "secretariat",
        "secret_name",
        "keyboard",
        "key",
        "keys",
        "primary_key",
        "foreignKey",
        "public_key",
        "access_key_id",
        "private_key_id",
        "api_key_name",
        "author",
        "authors",
        "authority",
        "oauth",
        "auth_type",
        "authorization_url",
        "pinned",
        "gpio_pin",
        "pincode",
        "compass",
        "bypass",
        "cookie_policy",
        "country_code",
        "zip_code",
        "status_code",
        "session_id",
        "signature",
        "credential_id",
    ] {
        assert!(!is_secret(name), "{name}");
    }
}

#[test]
fn every_name_contains_a_stem() {
    let terms = TERMS.iter().chain(STRONG).map(|term| term.join("_"));
    for name in terms.chain(JOINED.iter().map(|term| format!("x{term}"))) {
        assert!(is_secret(&name), "{name}");
    }
}

#[test]
fn plural_may_be_a_count() {
    for (name, value, is_count) in [
        ("tokens", "48151623", true),
        ("tokens", "[1, 2, 100257]", true),
        ("tokens", "[1, 48151623]", false),
        ("tokens", "12 x", false),
        ("tokens", "[1, \"x\"]", false),
        ("sessionCookies", "3", true),
        ("credentials", "48151623", false),
        ("credentials", "[1]", false),
        ("credentials", "", false),
        // The password variable of many programs.
        ("pass", "3", false),
        ("DB_PASS", "48151623", false),
        ("token", "1", false),
        ("pin", "1", false),
        ("recoveryCodes", "1", false),
    ] {
        assert_eq!(Counts::of(name).hold(value), is_count, "{name}: {value}");
    }
}

#[test]
fn end_of_a_long_name_counts() {
    assert!(is_secret(&format!("{}_password", "é".repeat(500))));
}
