//! The results as one SVG: a panel a figure, a bar a subject, whiskers from the smallest to the largest round.
//!
//! No script, no font, no image from elsewhere; colours follow the reader's scheme, light or dark, and no meaning hangs on
//! colour alone: every bar has its name and number, and a mark where the relay was not what could do no more.

use std::fmt::Write;

use super::about::About;
use super::case::Figure;
use super::results::{Limit, Results};
use super::subject::Subject;
use crate::bench::results::Spread;

/// All in SVG's user units, which are pixels unless scaled.
const PANEL_WIDTH: f64 = 470.0;
const COLUMNS: usize = 2;
const MARGIN: f64 = 24.0;
const HEAD: f64 = 78.0;
const TITLE: f64 = 34.0;
const ROW: f64 = 22.0;
const BAR: f64 = 14.0;
/// Where bars begin, right of the subjects' names.
const BARS_LEFT: f64 = 108.0;
/// The longest whisker's length. Right of it the number stands.
const BARS_WIDTH: f64 = 270.0;
/// Letters of 11 pixels that fit into a line of the caption.
const CAPTION_LETTERS: usize = 165;

const STYLE: &str = "\
svg { font: 13px system-ui, sans-serif; }
.ground { fill: #ffffff; }
text { fill: #1f2328; }
.small { font-size: 11px; }
.soft { fill: #59636e; }
.title { font-weight: 600; }
.ours { fill: #1a7f5a; }
.theirs { fill: #8c959f; }
.whisker { stroke: #1f2328; stroke-width: 1.5; fill: none; }
@media (prefers-color-scheme: dark) {
  .ground { fill: #0d1117; }
  text { fill: #e6edf3; }
  .soft { fill: #9198a1; }
  .ours { fill: #3fb984; }
  .theirs { fill: #656c76; }
  .whisker { stroke: #e6edf3; }
}
";

/// One panel before it has its place.
struct Panel {
    figure: Figure,
    bars: Vec<Bar>,
}

struct Bar {
    subject: Subject,
    spread: Spread,
    limit: Option<Limit>,
}

/// The whole drawing, a file of its own.
pub fn draw(results: &Results, about: &About) -> String {
    let subjects = results.subjects();
    let panels = Figure::ALL.into_iter().map(|figure| {
        let bars = subjects.iter().filter_map(|subject| {
            Some(Bar { subject: *subject, spread: results.spread(*subject, figure)?, limit: results.limit(*subject, figure) })
        });
        Panel { figure, bars: bars.collect() }
    });
    let panels: Vec<Panel> = panels.filter(|panel| !panel.bars.is_empty()).collect();

    let mut body = String::new();
    let mut top = HEAD;
    for line in panels.chunks(COLUMNS) {
        let mut left = MARGIN;
        for panel in line {
            panel.draw(&mut body, left, top);
            left += PANEL_WIDTH + MARGIN;
        }
        top += line.iter().map(Panel::height).fold(0.0, f64::max) + MARGIN;
    }

    let width = MARGIN + COLUMNS as f64 * (PANEL_WIDTH + MARGIN);
    let caption =
        format!("Median of {} rounds, whiskers from smallest to largest. † the load was the limit, ‡ neither was. {about}", about.rounds);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {top}\" width=\"{width}\" height=\"{top}\" role=\"img\">\n\
         <title>Relay bench</title>\n<style>\n{STYLE}</style>\n\
         <rect class=\"ground\" width=\"{width}\" height=\"{top}\"/>\n\
         <text class=\"title\" x=\"{MARGIN}\" y=\"30\" font-size=\"18\">Relay bench: skyway beside other relays, one processor each</text>\n\
         {}{body}</svg>\n",
        wrapped(&caption)
    )
}

impl Panel {
    fn height(&self) -> f64 {
        TITLE + ROW * self.bars.len() as f64
    }

    fn draw(&self, body: &mut String, left: f64, top: f64) {
        let Self { figure, bars } = self;
        let better = if figure.more_is_better() { "more is better" } else { "less is better" };
        let title = escaped(&format!("{}, {}", figure.label(), figure.unit()));
        let baseline = top + 18.0;
        put(
            body,
            &format!(
                "<text class=\"title\" x=\"{left}\" y=\"{baseline}\">{title}<tspan class=\"soft small\" dx=\"8\" font-weight=\"400\">{better}</tspan></text>"
            ),
        );
        let largest = bars.iter().map(|bar| bar.spread.max).fold(0.0, f64::max);
        // What is added may be less than nothing.
        let length = |value: f64| if largest > 0.0 { value.max(0.0) / largest * BARS_WIDTH } else { 0.0 };
        let start = left + BARS_LEFT;
        for (index, Bar { subject, spread: Spread { median, min, max, .. }, limit }) in bars.iter().enumerate() {
            let bar_top = top + TITLE + ROW * index as f64;
            let (middle, text_line) = (bar_top + BAR / 2.0, bar_top + BAR - 3.0);
            let class = if *subject == Subject::Skyway { "ours" } else { "theirs" };
            let name_end = start - 8.0;
            put(
                body,
                &format!("<text class=\"small\" x=\"{name_end}\" y=\"{text_line}\" text-anchor=\"end\">{}</text>", escaped(subject.name())),
            );
            let width = length(*median);
            put(
                body,
                &format!("<rect class=\"{class}\" x=\"{start}\" y=\"{bar_top:.1}\" width=\"{width:.1}\" height=\"{BAR}\" rx=\"2\"/>"),
            );
            let (from, to) = (start + length(*min), start + length(*max));
            let (upper, lower) = (middle - 4.0, middle + 4.0);
            put(
                body,
                &format!(
                    "<path class=\"whisker\" d=\"M{from:.1} {middle:.1}H{to:.1}M{from:.1} {upper:.1}V{lower:.1}M{to:.1} {upper:.1}V{lower:.1}\"/>"
                ),
            );
            let number_start = to + 8.0;
            let mark = match limit {
                Some(Limit::Load) => " †",
                Some(Limit::Neither) => " ‡",
                Some(Limit::Relay) | None => "",
            };
            let number = figure.number(*median);
            put(body, &format!("<text class=\"small\" x=\"{number_start:.1}\" y=\"{text_line}\">{number}{mark}</text>"));
        }
    }
}

fn put(body: &mut String, element: &str) {
    writeln!(body, "{element}").expect("a string takes all that is written");
}

/// The caption under the title, in at most two lines.
fn wrapped(text: &str) -> String {
    let mut lines = [String::new(), String::new()];
    let mut index = 0;
    for word in text.split_whitespace() {
        if index == 0 && lines[0].chars().count() + word.chars().count() > CAPTION_LETTERS {
            index = 1;
        }
        let line = &mut lines[index];
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    let mut drawn = String::new();
    for (line, y) in lines.iter().zip([48, 63]) {
        put(&mut drawn, &format!("<text class=\"small soft\" x=\"{MARGIN}\" y=\"{y}\">{}</text>", escaped(line)));
    }
    drawn
}

/// What has a meaning in XML loses it.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::super::about::tests::about;
    use super::super::results::tests::rounds;
    use super::*;

    #[test]
    fn draws_a_panel_a_figure_and_a_bar_a_subject() {
        let mut samples = rounds(Subject::Skyway, Figure::SniRate, &[4.0, 4.5, 5.0]);
        samples.extend(rounds(Subject::Haproxy, Figure::SniRate, &[2.0, 3.0, 2.5]));
        samples.extend(rounds(Subject::Skyway, Figure::AddedP50, &[-3.0]));
        let drawing = draw(&Results { samples, failures: Vec::new() }, &about());
        assert_eq!(drawing.matches("<rect class=\"ours\"").count(), 2);
        assert_eq!(drawing.matches("<rect class=\"theirs\"").count(), 1);
        assert_eq!(drawing.matches("<path class=\"whisker\"").count(), 3);
        assert_eq!((drawing.matches("more is better").count(), drawing.matches("less is better").count()), (1, 1));
        // The largest value has the whole width: 270; the other's median is half of it; what is below nothing has none.
        assert!(
            drawing.contains("width=\"243.0\"") && drawing.contains("width=\"135.0\"") && drawing.contains("width=\"0.0\""),
            "{drawing}"
        );
        assert!(drawing.contains("Processor &lt;A&gt; &amp; B") && !drawing.contains("<A>"), "{drawing}");
        assert_eq!(drawing.matches("<text").count(), drawing.matches("</text>").count());
        assert!(drawing.starts_with("<svg ") && drawing.ends_with("</svg>\n") && !drawing.contains("NaN"));
    }
}
