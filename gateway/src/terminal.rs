//! What is said to the person at the terminal, apart from the log.

use std::io::{self, Write};

/// Prints to standard output. A reader that went away (`skyway status | head`) is no error.
pub(crate) fn say(text: &str) {
    let _closed = writeln!(io::stdout(), "{}", text.trim_end_matches('\n'));
}

/// Prints to standard error.
pub(crate) fn complain(text: &str) {
    let text = text.trim_end_matches('\n');
    if !text.is_empty() {
        let _closed = writeln!(io::stderr(), "{text}");
    }
}
