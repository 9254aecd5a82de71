//! Access lines: what a gateway's log says when a session has ended.

/// One `session ended` line of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessLine(String);

impl AccessLine {
    /// All of them in `log`, oldest first; one that is still being written is not there yet.
    pub fn all(log: &str) -> Vec<Self> {
        let written = log.rsplit_once('\n').map_or("", |(written, _)| written);
        without_color(written).lines().filter(|line| line.contains("session ended")).map(|line| Self(line.to_owned())).collect()
    }

    /// The value of `name=`, without the quotation marks of a text.
    #[track_caller]
    pub fn field(&self, name: &str) -> &str {
        let key = format!(" {name}=");
        let Some((_, rest)) = self.0.split_once(&key) else { panic!("no field {name} in: {}", self.0) };
        let value = match rest.strip_prefix('"') {
            Some(quoted) => quoted.split('"').next(),
            None => rest.split_whitespace().next(),
        };
        value.unwrap_or_default()
    }

    #[track_caller]
    pub fn number(&self, name: &str) -> u64 {
        let value = self.field(name);
        value.parse().unwrap_or_else(|_| panic!("{name}={value} is no number in: {}", self.0))
    }
}

/// `text` without the escape sequences that color a terminal: ESC [ … m.
fn without_color(text: &str) -> String {
    let mut parts = text.split('\u{1b}');
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        plain.push_str(part.split_once('m').map_or("", |(_, after)| after));
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_quoted_and_bare_fields() {
        let log = "INFO something else\n\
                   \u{1b}[2m2026-11-24\u{1b}[0m \u{1b}[32m INFO\u{1b}[0m skyway::access: session ended sensor=\"line-3\" bytes_up=17 \u{1b}[3mreason\u{1b}[0m=\"host_not_listed\" detail=\"-\"\n";
        let lines = AccessLine::all(&format!("{log}INFO skyway::access: session ended sens"));
        let [line] = lines.as_slice() else { panic!("{lines:?}") };
        assert_eq!(line.field("sensor"), "line-3");
        assert_eq!(line.number("bytes_up"), 17);
        assert_eq!(line.field("reason"), "host_not_listed");
    }
}
