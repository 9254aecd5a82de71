//! The results as one SVG: a panel a figure, a bar a subject, whiskers from the smallest to the largest round.
//!
//! A panel each, because the figures have different units. No script, no font, no image from elsewhere; colours follow the
//! reader's scheme, light or dark, and no meaning hangs on colour alone: every bar has its name and number.

use std::fmt::Write;

use super::case::Figure;
use super::machine::Machine;
use super::results::{Results, Spread};
use super::subject::Subject;

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
    bars: Vec<(Subject, Spread)>,
}

/// The whole drawing, a file of its own.
pub fn draw(results: &Results, machine: &Machine, rounds: usize) -> String {
    let subjects = results.subjects();
    let mut panels = Vec::new();
    for figure in Figure::ALL {
        let bars = subjects.iter().filter_map(|subject| Some((*subject, results.spread(*subject, figure)?)));
        let panel = Panel { figure, bars: bars.collect() };
        if !panel.bars.is_empty() {
            panels.push(panel);
        }
    }

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
    let caption = format!("Median of {rounds} rounds, whiskers from smallest to largest. {machine}");
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {top}\" width=\"{width}\" height=\"{top}\" role=\"img\">\n\
         <title>Tunnel bench</title>\n<style>\n{STYLE}</style>\n\
         <rect class=\"ground\" width=\"{width}\" height=\"{top}\"/>\n\
         <text class=\"title\" x=\"{MARGIN}\" y=\"30\" font-size=\"18\">Tunnel bench: skyway beside other WireGuard programs</text>\n\
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
        let title = format!("{}, {}", figure.label(), figure.unit());
        let baseline = top + 18.0;
        put(
            body,
            &format!(
                "<text class=\"title\" x=\"{left}\" y=\"{baseline}\">{}<tspan class=\"soft small\" dx=\"8\" font-weight=\"400\">{better}</tspan></text>",
                escaped(&title)
            ),
        );
        let largest = bars.iter().map(|(_, spread)| spread.max).fold(0.0, f64::max);
        let length = |value: f64| if largest > 0.0 { value / largest * BARS_WIDTH } else { 0.0 };
        let start = left + BARS_LEFT;
        for (index, (subject, Spread { median, min, max, .. })) in bars.iter().enumerate() {
            let bar_top = top + TITLE + ROW * index as f64;
            let (middle, text_line) = (bar_top + BAR / 2.0, bar_top + BAR - 3.0);
            let class = if subject.lanes().is_some() { "ours" } else { "theirs" };
            let name_end = start - 8.0;
            put(
                body,
                &format!("<text class=\"small\" x=\"{name_end}\" y=\"{text_line}\" text-anchor=\"end\">{}</text>", escaped(subject.name())),
            );
            put(
                body,
                &format!(
                    "<rect class=\"{class}\" x=\"{start}\" y=\"{bar_top:.1}\" width=\"{:.1}\" height=\"{BAR}\" rx=\"2\"/>",
                    length(*median)
                ),
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
            put(body, &format!("<text class=\"small\" x=\"{number_start:.1}\" y=\"{text_line}\">{}</text>", figure.number(*median)));
        }
    }
}

fn put(body: &mut String, element: &str) {
    writeln!(body, "{element}").expect("a string takes all that is written");
}

/// The caption under the title, in at most two lines.
fn wrapped(text: &str) -> String {
    // A line of 11-pixel letters as wide as the drawing.
    const LETTERS: usize = 165;
    let mut lines = [String::new(), String::new()];
    let mut index = 0;
    for word in text.split_whitespace() {
        if index == 0 && lines[0].chars().count() + word.chars().count() > LETTERS {
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
    use super::super::results::tests::rounds;
    use super::super::table::tests::machine;
    use super::*;

    #[test]
    fn draws_a_panel_a_figure_and_a_bar_a_subject() {
        let mut samples = rounds(Subject::Skyway1, Figure::Tcp1, &[4.0, 4.5, 5.0]);
        samples.extend(rounds(Subject::WireguardGo, Figure::Tcp1, &[2.0, 3.0, 2.5]));
        samples.extend(rounds(Subject::Skyway1, Figure::LatencyP50, &[90.0]));
        let drawing = draw(&Results { samples, failures: Vec::new() }, &machine(), 3);
        assert_eq!(drawing.matches("<rect class=\"ours\"").count(), 2);
        assert_eq!(drawing.matches("<rect class=\"theirs\"").count(), 1);
        assert_eq!(drawing.matches("<path class=\"whisker\"").count(), 3);
        assert_eq!(drawing.matches("more is better").count(), 1);
        assert_eq!(drawing.matches("less is better").count(), 1);
        // The largest value has the whole width: 270; the other's median is half of it.
        assert!(drawing.contains("width=\"243.0\"") && drawing.contains("width=\"135.0\""), "{drawing}");
        assert!(drawing.contains("Processor &lt;A&gt; &amp; B") && !drawing.contains("<A>"), "{drawing}");
        assert_eq!(drawing.matches("<text").count(), drawing.matches("</text>").count());
        assert!(drawing.starts_with("<svg ") && drawing.ends_with("</svg>\n"));
    }

    #[test]
    fn draws_nothing_measured_without_a_division_by_zero() {
        let samples = rounds(Subject::Skyway1, Figure::PeakRss, &[0.0]);
        let drawing = draw(&Results { samples, failures: Vec::new() }, &machine(), 1);
        assert!(!drawing.contains("NaN") && !drawing.contains("inf"), "{drawing}");
    }
}
