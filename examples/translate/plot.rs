//! Draws what the decoder looked at: a heat map for each head of each layer, all on one sheet.

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::engine::Result;

/// What a sheet shows.
pub(crate) struct Sheet<'a> {
    pub(crate) title: String,
    /// The S characters that were read.
    pub(crate) source: Vec<String>,
    /// The T tokens that were produced.
    pub(crate) produced: Vec<String>,
    /// Which of them the model is least certain of, and how certain.
    pub(crate) least_certain: Option<(usize, f64)>,
    pub(crate) n_heads: usize,
    /// For each layer the weights (NH, T, S).
    pub(crate) layers: &'a [Vec<f32>],
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

const FONT: &str = "DejaVu Sans, Verdana, sans-serif";
const MONO: &str = "DejaVu Sans Mono, Menlo, Consolas, monospace";
const INK: RGBColor = RGBColor(30, 34, 42);
const FAINT: RGBColor = RGBColor(170, 176, 186);

const MARGIN: i32 = 28;
const HEADER: i32 = 92;
const CELL_HEIGHT: i32 = 18;
/// Room for the panel's title above, the source's characters below, the produced tokens to the left.
const TITLE: i32 = 28;
const BELOW: i32 = 24;
const LEFT: i32 = 30;
/// Between panels.
const GAP: i32 = 26;
/// The narrowest sheet that has room for the header.
const NARROWEST: i32 = 800;

/// From no attention to all of it.
const COLOURS: [RGBColor; 4] =
    [RGBColor(245, 247, 250), RGBColor(158, 202, 225), RGBColor(33, 113, 181), RGBColor(8, 29, 88)];

/// The sheet as SVG: a column of panels for each layer, a row for each head.
pub(crate) fn svg(sheet: &Sheet<'_>) -> Result<String> {
    let (s, t) = (sheet.source.len() as i32, sheet.produced.len() as i32);
    let (columns, rows) = (sheet.layers.len() as i32, sheet.n_heads as i32);
    // A short source has wider cells, so that its panels still have room for their titles.
    let cell_width = (480 / s.max(1)).clamp(15, 26);
    let panel = (LEFT + s * cell_width, TITLE + t * CELL_HEIGHT + BELOW);
    let panels = (columns * (panel.0 + GAP) - GAP, rows * (panel.1 + GAP) - GAP);
    let size = ((panels.0 + 2 * MARGIN).max(NARROWEST), HEADER + panels.1 + 2 * MARGIN);

    let mut text = String::new();
    {
        let root = SVGBackend::with_string(&mut text, (size.0 as u32, size.1 as u32)).into_drawing_area();
        root.fill(&WHITE)?;
        header(&root, sheet, size.0)?;
        let left = (size.0 - panels.0) / 2;
        for (layer, weights) in (0..).zip(sheet.layers) {
            for (head, weights) in (0..).zip(weights.chunks_exact((s * t) as usize)) {
                let at = (left + layer * (panel.0 + GAP), MARGIN + HEADER + head * (panel.1 + GAP));
                let title = format!("layer {} head {}", layer + 1, head + 1);
                draw_panel(&root, at, cell_width, &title, sheet, weights)?;
            }
        }
        root.present()?;
    }
    Ok(text)
}

fn header(root: &Area<'_>, sheet: &Sheet<'_>, width: i32) -> Result<()> {
    write(root, &sheet.title, (MARGIN, MARGIN + 4), (MONO, 20), INK, HPos::Left)?;
    let about = "Cross-attention: how much each produced character (rows) looks at each character of the source (columns).";
    write(root, about, (MARGIN, MARGIN + 34), (FONT, 13), INK, HPos::Left)?;
    if let Some((at, probability)) = sheet.least_certain {
        let token = sheet.produced.get(at).map_or("", |token| visible(token));
        let text = format!("Least certain of “{token}” in place {}: a probability of {:.1} %.", at + 1, 100.0 * probability);
        write(root, &text, (MARGIN, MARGIN + 54), (FONT, 13), INK, HPos::Left)?;
    }

    // The colour scale, at the right end of the second line.
    let (length, height) = (200, 12);
    let (x, y) = (width - MARGIN - length, MARGIN + 52);
    for i in 0..length {
        let colour = colour(i as f32 / (length - 1) as f32);
        root.draw(&Rectangle::new([(x + i, y), (x + i + 1, y + height)], colour.filled()))?;
    }
    root.draw(&Rectangle::new([(x, y), (x + length, y + height)], FAINT))?;
    for (share, label) in [(0, "0"), (1, "0.25"), (2, "0.5"), (3, "0.75"), (4, "1")] {
        let at = x + share * length / 4;
        root.draw(&PathElement::new([(at, y + height), (at, y + height + 4)], FAINT))?;
        write(root, label, (at, y + height + 13), (FONT, 11), INK, HPos::Center)?;
    }
    write(root, "weight", (x - 10, y + height / 2), (FONT, 12), INK, HPos::Right)
}

/// One head: T rows of S cells, with the tokens at the left and the source's characters below.
fn draw_panel(
    root: &Area<'_>,
    (x, y): (i32, i32),
    cell_width: i32,
    title: &str,
    sheet: &Sheet<'_>,
    weights: &[f32],
) -> Result<()> {
    let (left, top) = (x + LEFT, y + TITLE);
    write(root, title, (left, y + 12), (FONT, 14), INK, HPos::Left)?;
    let columns = sheet.source.len();
    let bottom = top + sheet.produced.len() as i32 * CELL_HEIGHT;
    let frame = [(left, top), (left + columns as i32 * cell_width, bottom)];
    root.draw(&Rectangle::new(frame, COLOURS[0].filled()))?;
    for (row, weights) in (0..).zip(weights.chunks_exact(columns)) {
        let y = top + row * CELL_HEIGHT;
        for (column, &weight) in (0..).zip(weights) {
            let x = left + column * cell_width;
            let colour = colour(weight);
            if colour != COLOURS[0] {
                root.draw(&Rectangle::new([(x, y), (x + cell_width, y + CELL_HEIGHT)], colour.filled()))?;
            }
        }
    }
    root.draw(&Rectangle::new(frame, FAINT))?;
    for (row, token) in (0..).zip(&sheet.produced) {
        let y = top + row * CELL_HEIGHT + CELL_HEIGHT / 2;
        write(root, visible(token), (left - 7, y), (MONO, 13), INK, HPos::Right)?;
    }
    for (column, character) in (0..).zip(&sheet.source) {
        let x = left + column * cell_width + cell_width / 2;
        write(root, visible(character), (x, bottom + 12), (MONO, 13), INK, HPos::Center)?;
    }
    Ok(())
}

/// Text that is vertically centred on `at`.
fn write(root: &Area<'_>, text: &str, at: (i32, i32), font: (&str, i32), colour: RGBColor, side: HPos) -> Result<()> {
    let style = TextStyle::from(font.into_font()).color(&colour).pos(Pos::new(side, VPos::Center));
    Ok(root.draw(&Text::new(text.to_owned(), at, style))?)
}

/// How a token is shown where it would not be seen.
fn visible(token: &str) -> &str {
    match token {
        " " => "␣",
        "<eos>" => "end",
        other => other,
    }
}

/// The colour of a weight between 0 and 1.
fn colour(weight: f32) -> RGBColor {
    let steps = (COLOURS.len() - 1) as f32;
    let at = if weight.is_finite() { weight.clamp(0.0, 1.0) * steps } else { 0.0 };
    let first = (at as usize).min(COLOURS.len() - 2);
    let (from, to, share) = (COLOURS[first], COLOURS[first + 1], at - first as f32);
    let mix = |a: u8, b: u8| (f32::from(a) + (f32::from(b) - f32::from(a)) * share).round() as u8;
    RGBColor(mix(from.0, to.0), mix(from.1, to.1), mix(from.2, to.2))
}
