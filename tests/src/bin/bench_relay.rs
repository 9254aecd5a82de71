//! The relay bench, started by `tests/bench/relay`, which builds it and installs the programs that skyway is compared with.
//!
//! Exit codes: 0 measured, 1 some measurements failed, 2 nothing could be measured. A missed target changes none of them:
//! the report tells it.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use anyhow::{Context, Result, anyhow, ensure};
use tests::bench_relay::about::About;
use tests::bench_relay::case::Case;
use tests::bench_relay::options::{Options, USAGE};
use tests::bench_relay::subject::{Programs, Subject};
use tests::bench_relay::usage::open_files;
use tests::bench_relay::{Bench, plot, table};
use tests::report::{Need, machine_has};

const NEEDS: &[Need] = &[Need::Namespaces, Need::Tool("ip"), Need::Tool("taskset"), Need::Tool("sysctl"), Need::Tool("kill")];

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            say(&format!("bench_relay: {error:#}"));
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<ExitCode> {
    let options = Options::parse(env::args().skip(1)).map_err(|error| anyhow!(error))?;
    if options.help {
        print(&format!("{USAGE}\n"))?;
        return Ok(ExitCode::SUCCESS);
    }
    if options.list {
        print(&list())?;
        return Ok(ExitCode::SUCCESS);
    }
    ensure!(machine_has(NEEDS), "the bench needs what is named above");
    let cores = thread::available_parallelism().map_or(1, usize::from);
    ensure!(cores >= 2, "the relay has a processor for itself, and the load needs another one: there is {cores}");
    let open_files = open_files()?;
    let programs = Programs::find(&options);
    let about = About::look(&programs, &options, open_files);
    let bench = Bench::new(&options, &programs, open_files);

    say(&about.to_string());
    for (subject, why) in &about.missing {
        say(&format!("LEFT OUT: {}: {why}", subject.name()));
    }
    let measurements = bench.measurements();
    ensure!(measurements > 0, "no subject that is here takes part in these cases");
    say(&format!(
        "{} rounds of {}: {measurements} measurements, about {}",
        options.rounds,
        bench.subjects().iter().map(|subject| subject.name()).collect::<Vec<_>>().join(", "),
        minutes(bench.estimate()),
    ));
    fs::create_dir_all(&options.out).with_context(|| options.out.display().to_string())?;
    let peers = options.out.join("peers");
    bench.keep_configurations(&peers).with_context(|| peers.display().to_string())?;
    say(&format!("everybody's configuration is in {}", peers.display()));

    let start = Instant::now();
    let results = bench.run(&mut say);
    say(&format!("measured in {}", minutes(start.elapsed())));

    let report = table::report(&results, &about);
    let drawing = plot::draw(&results, &about);
    let json = format!("{:#}\n", results.to_json(&about.to_json()));
    for (file, text) in [("results.json", &json), ("table.md", &report), ("relay.svg", &drawing)] {
        let path = options.out.join(file);
        fs::write(&path, text).with_context(|| path.display().to_string())?;
    }
    print(&report)?;
    say(&format!("written to {}: results.json, table.md, relay.svg, peers", options.out.display()));
    Ok(if results.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

fn list() -> String {
    let mut text = String::from("subjects\n");
    for subject in Subject::ALL {
        text.push_str(&format!("  {:<16}{}\n", subject.name(), subject.about()));
    }
    text.push_str("cases\n");
    for case in Case::ALL {
        text.push_str(&format!("  {:<16}{}\n", case.name(), case.about()));
    }
    text
}

fn minutes(duration: Duration) -> String {
    let seconds = duration.as_secs();
    format!("{} min {:02} s", seconds / 60, seconds % 60)
}

fn print(text: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).context("stdout")
}

/// To the person who waits; the report alone goes to stdout.
fn say(line: &str) {
    let _nobody_reads_it = writeln!(io::stderr(), "{line}");
}
