//! What the command line asks for.

use std::path::PathBuf;

use super::case::Case;
use super::subject::Subject;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    pub rounds: usize,
    /// How long each load is measured.
    pub seconds: u64,
    /// In the order of [`Subject::ALL`].
    pub subjects: Vec<Subject>,
    /// In the order of [`Case::ALL`].
    pub cases: Vec<Case>,
    /// Everybody writes an access line a session.
    pub logs: bool,
    /// What arrives in a namespace is worked off by that namespace's processor.
    pub steered: bool,
    pub out: PathBuf,
    pub list: bool,
    pub help: bool,
}

pub const USAGE: &str = "\
tests/bench/relay [OPTION]…

  --quick               2 rounds of 2 s, for development
  --rounds N            rounds, each with every subject once (default 5)
  --seconds S           how long each load is measured (default 4)
  --only SUBJECT,…      these subjects alone; `none` too if anything is to be compared with no relay
  --cases CASE,…        these cases alone
  --long                also 100,000 idle sessions
  --logs                everybody writes an access line a session
  --unsteered           leaves packets to the sender's processor
  --out FOLDER          where results.json, table.md, relay.svg and the peers' configurations go (default target/bench/relay)
  --list                says what subjects and cases there are";

impl Options {
    /// `words`: the command line without the program. Err: what is wrong with it.
    pub fn parse(words: impl IntoIterator<Item = String>) -> Result<Self, String> {
        let mut words = words.into_iter();
        let (mut rounds, mut seconds, mut cases) = (None, None, None);
        let (mut quick, mut long) = (false, false);
        let mut options = Self {
            rounds: 5,
            seconds: 4,
            subjects: Subject::ALL.to_vec(),
            cases: Vec::new(),
            logs: false,
            steered: true,
            out: "target/bench/relay".into(),
            list: false,
            help: false,
        };
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or_else(|| format!("{word} wants a value"));
            match word.as_str() {
                "--quick" => quick = true,
                "--rounds" => rounds = Some(number(&word, &value()?, 100)?),
                "--seconds" => seconds = Some(number(&word, &value()?, 600)?),
                "--only" => options.subjects = chosen(&value()?, &Subject::ALL, Subject::name)?,
                "--cases" => cases = Some(chosen(&value()?, &Case::ALL, Case::name)?),
                "--long" => long = true,
                "--logs" => options.logs = true,
                "--unsteered" => options.steered = false,
                "--out" => options.out = value()?.into(),
                "--list" => options.list = true,
                "--help" | "-h" => options.help = true,
                _ => return Err(format!("{word} is no option\n\n{USAGE}")),
            }
        }
        options.cases = cases.unwrap_or_else(|| Case::ALL.into_iter().filter(|case| case.by_default(long)).collect());
        if quick {
            (options.rounds, options.seconds) = (2, 2);
        }
        // What is said in numbers counts more than --quick, wherever it stands.
        if let Some(rounds) = rounds {
            options.rounds = usize::try_from(rounds).map_err(|_| "--rounds: too many".to_owned())?;
        }
        if let Some(seconds) = seconds {
            options.seconds = seconds;
        }
        Ok(options)
    }
}

fn number(option: &str, word: &str, most: u64) -> Result<u64, String> {
    let parsed = word.parse::<u64>().ok().filter(|number| (1..=most).contains(number));
    parsed.ok_or_else(|| format!("{option} takes a number from 1 to {most}, and not {word:?}"))
}

/// Those of `all` whose names stand in `words`, in the order of `all`.
fn chosen<T: Copy>(words: &str, all: &[T], name: fn(T) -> &'static str) -> Result<Vec<T>, String> {
    let wanted: Vec<&str> = words.split(',').map(str::trim).filter(|word| !word.is_empty()).collect();
    let unknown = wanted.iter().find(|word| all.iter().all(|one| name(*one) != **word));
    if let Some(word) = unknown {
        let names: Vec<&str> = all.iter().map(|one| name(*one)).collect();
        return Err(format!("{word:?} is none of {}", names.join(", ")));
    }
    if wanted.is_empty() {
        return Err("nothing is named".to_owned());
    }
    Ok(all.iter().copied().filter(|one| wanted.contains(&name(*one))).collect())
}

#[cfg(test)]
mod tests {
    use super::super::case::Crowd;
    use super::*;

    const HUNDRED_THOUSAND: Case = Case::Idle(Crowd::HundredThousand);

    fn parse(line: &str) -> Result<Options, String> {
        Options::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn defaults_are_five_rounds_of_all_but_the_long_case() {
        let options = parse("").expect("nothing wrong");
        assert_eq!((options.rounds, options.seconds), (5, 4));
        assert_eq!((options.subjects.len(), options.cases.len()), (Subject::ALL.len(), Case::ALL.len() - 1));
        assert!(!options.cases.contains(&HUNDRED_THOUSAND));
        assert!(parse("--long").expect("nothing wrong").cases.contains(&HUNDRED_THOUSAND));
        assert_eq!(parse("--cases idle_100k").expect("nothing wrong").cases, [HUNDRED_THOUSAND]);
    }

    #[test]
    fn numbers_count_more_than_quick() {
        let options = parse("--rounds 3 --quick").expect("nothing wrong");
        assert_eq!((options.rounds, options.seconds), (3, 2));
    }

    #[test]
    fn a_choice_keeps_the_order_of_the_bench() {
        let options = parse("--only squid,skyway --cases drain,sni_rate").expect("nothing wrong");
        assert_eq!(options.subjects, [Subject::Skyway, Subject::Squid]);
        assert_eq!(options.cases, [Case::SniRate, Case::Drain]);
    }

    #[test]
    fn mistakes_are_told() {
        for (line, part) in [
            ("--only envoy", "\"envoy\" is none of none, skyway"),
            ("--cases ,", "nothing is named"),
            ("--rounds 0", "from 1 to 100"),
            ("--seconds x", "from 1 to 600"),
            ("--out", "--out wants a value"),
            ("--fast", "--fast is no option"),
        ] {
            let error = parse(line).expect_err(line);
            assert!(error.contains(part), "{line}: {error}");
        }
    }
}
