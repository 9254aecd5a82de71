//! Files of others from which a relay's settings come: the portal's endpoint details, a squid.conf.
//!
//! Pure: text in, values out. Each reader says what it could not use and where that stands, makes nothing up for it, and
//! has a limit on what it takes, because the files come from elsewhere. Reading them from disk and showing the result is
//! the command line's.

pub mod endpoints;
pub mod squid;

use crate::relay::HostName;
use crate::relay::catalogue::{Entry, HTTPS, Role};

/// One entry of `catalogue.hosts` in YAML: the name alone where the rest goes without saying. `name` may be `*.DOMAIN`.
fn host_entry(name: &str, entry: &Entry) -> String {
    let guessed = HostName::parse(&name.replacen('*', "any", 1)).map_or(Role::Other, |host| Role::guess(&host));
    let name = quoted(name);
    let mut more = String::new();
    if entry.role != guessed {
        more.push_str(&format!(", role: {}", entry.role.label()));
    }
    if entry.ports != [HTTPS] {
        more.push_str(&format!(", ports: [{}]", joined(&entry.ports)));
    }
    if !entry.allow.is_empty() {
        more.push_str(&format!(", allow: [{}]", quoted_list(&entry.allow)));
    }
    if !entry.addresses.is_empty() {
        more.push_str(&format!(", addresses: [{}]", quoted_list(&entry.addresses)));
    }
    if more.is_empty() { name } else { format!("{{ host: {name}{more} }}") }
}

/// Appends `key:` and its items below it, each a line of YAML, to `yaml`. `indent` is the key's.
fn push_list(yaml: &mut String, indent: usize, key: &str, items: impl IntoIterator<Item = String>) {
    let mut items = items.into_iter().peekable();
    let empty = if items.peek().is_none() { " [ ]" } else { "" };
    yaml.push_str(&format!("{:indent$}{key}:{empty}\n", ""));
    for item in items {
        yaml.push_str(&format!("{:indent$}  - {item}\n", ""));
    }
}

/// A scalar of YAML that can be nothing but a text. JSON's form is one of YAML's.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn quoted_list<T: ToString>(items: &[T]) -> String {
    items.iter().map(|item| quoted(&item.to_string())).collect::<Vec<_>>().join(", ")
}

fn joined<T: ToString>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Text of a file as a message may repeat it: not long, and without what a terminal would obey or hide.
fn shown(text: &str) -> String {
    let mut shown = String::new();
    for (count, character) in text.chars().enumerate() {
        if count == LONGEST_SHOWN {
            shown.push('…');
            break;
        }
        let hidden = matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
        if hidden || character.is_control() {
            shown.extend(character.escape_default());
        } else {
            shown.push(character);
        }
    }
    shown
}

/// Whether strangers have names below `domain`, so that a wildcard over it opens theirs as well.
fn is_shared(domain: &str) -> bool {
    SHARED_DOMAINS.iter().any(|shared| domain == *shared || is_below(domain, shared) || is_below(shared, domain))
}

fn is_below(name: &str, domain: &str) -> bool {
    name.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'))
}

/// Domains below which a cloud gives a name to whoever pays for one. Source: Azure's "Private endpoint DNS" and "Compare
/// Azure Government and global Azure" for Azure's; the other clouds' by their storage services' documentation.
const SHARED_DOMAINS: &[&str] = &[
    "amazonaws.com",
    "appspot.com",
    "azure-api.net",
    "azure-devices.net",
    "azure-devices.us",
    "azure-devices-provisioning.net",
    "azurecontainer.io",
    "azureedge.net",
    "azurefd.net",
    "azurewebsites.net",
    "cloudapp.azure.com",
    "cloudapp.net",
    "cloudfront.net",
    "core.usgovcloudapi.net",
    "core.windows.net",
    "database.windows.net",
    "googleapis.com",
    "servicebus.usgovcloudapi.net",
    "servicebus.windows.net",
    "trafficmanager.net",
    "vault.azure.net",
];

/// Characters of a file's text that a message repeats.
const LONGEST_SHOWN: usize = 120;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_says_only_what_does_not_go_without_saying() {
        let name = "contososa.blob.core.windows.net";
        assert_eq!(host_entry(name, &Entry::new(Role::Blob)), r#""contososa.blob.core.windows.net""#);
        assert_eq!(host_entry("*.blob.core.windows.net", &Entry::new(Role::Blob)), r#""*.blob.core.windows.net""#);
        let entry = Entry {
            ports: vec![443, 8443],
            allow: vec!["10.20.0.0/16".parse().expect("a prefix"), "fd00::/8".parse().expect("a prefix")],
            addresses: vec!["10.20.0.7".parse().expect("an address")],
            ..Entry::new(Role::Download)
        };
        assert_eq!(
            host_entry(name, &entry),
            "{ host: \"contososa.blob.core.windows.net\", role: download, ports: [443, 8443], allow: [\"10.20.0.0/16\", \"fd00::/8\"], \
             addresses: [\"10.20.0.7\"] }"
        );
    }

    #[test]
    fn a_list_stands_below_its_key() {
        let mut yaml = String::new();
        push_list(&mut yaml, 2, "hosts", ["a".to_owned(), "b".to_owned()]);
        push_list(&mut yaml, 2, "paths", []);
        assert_eq!(yaml, "  hosts:\n    - a\n    - b\n  paths: [ ]\n");
    }

    #[test]
    fn what_a_terminal_would_obey_is_shown_as_text() {
        assert_eq!(shown("a\u{1b}[2Jb\u{202e}c"), "a\\u{1b}[2Jb\\u{202e}c");
        assert_eq!(shown(&"x".repeat(200)).chars().count(), LONGEST_SHOWN + 1);
    }

    #[test]
    fn a_domain_is_shared_with_what_is_above_and_below_it() {
        for domain in ["blob.core.windows.net", "weu.servicebus.windows.net", "azure-devices.net", "windows.net", "net"] {
            assert!(is_shared(domain), "{domain}");
        }
        for domain in ["download.microsoft.com", "contoso.example", "notazure-devices.net"] {
            assert!(!is_shared(domain), "{domain}");
        }
    }
}
