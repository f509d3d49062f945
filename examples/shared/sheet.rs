//! Draws what each head of each layer looks at, all on one sheet, the way of bertviz's model view (Vig, arXiv 1906.05714): the tokens at
//! the left look at those at the right, along lines that are as strong as the weights.

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// A sheet that was drawn, or why not.
type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// The most tokens that a sheet shows.
pub(crate) const MOST_TOKENS: usize = 64;

/// What a sheet shows.
pub(crate) struct Sheet<'a> {
    pub(crate) title: &'a str,
    /// T tokens.
    pub(crate) tokens: &'a [String],
    /// Which of them belong to the second segment.
    pub(crate) second: &'a [bool],
    pub(crate) n_heads: usize,
    /// For each layer the weights (NH, T, T).
    pub(crate) layers: &'a [Vec<f32>],
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Fonts with signs of every script that a system has come behind.
const FONT: &str = "DejaVu Sans, Verdana, Noto Sans, Noto Sans CJK SC, PingFang SC, Microsoft YaHei, sans-serif";
const INK: RGBColor = RGBColor(30, 34, 42);
const SECOND: RGBColor = RGBColor(150, 60, 40);
const FAINT: RGBColor = RGBColor(216, 220, 226);

const MARGIN: i32 = 24;
const HEADER: i32 = 58;
const ROW: i32 = 14;
/// Between panels.
const GAP: i32 = 18;
/// Where the lines run.
const SPAN: i32 = 70;
/// The widest label, and its size, in pixels.
const WIDEST: i32 = 96;
const LABEL: i32 = 12;

/// Weights below this are not drawn: their lines would not be seen.
const FAINTEST: f32 = 0.02;

/// One for each head, again and again.
const COLOURS: [RGBColor; 8] = [
    RGBColor(31, 119, 180),
    RGBColor(255, 127, 14),
    RGBColor(44, 160, 44),
    RGBColor(214, 39, 40),
    RGBColor(148, 103, 189),
    RGBColor(140, 86, 75),
    RGBColor(197, 79, 160),
    RGBColor(23, 150, 170),
];

/// The width of a label as most fonts have it: signs of East Asia are as wide as high, others about half.
fn width(token: &str) -> i32 {
    token.chars().map(|c| if u32::from(c) >= 0x1100 { LABEL } else { LABEL * 6 / 10 }).sum()
}

/// The sheet as SVG: a row of panels for each layer, a column for each head.
pub(crate) fn svg(sheet: &Sheet<'_>) -> Result<String> {
    let (rows, columns, t) = (sheet.layers.len() as i32, sheet.n_heads as i32, sheet.tokens.len() as i32);
    let label = sheet.tokens.iter().map(|token| width(token)).max().unwrap_or(0).clamp(20, WIDEST) + 4;
    let panel = (2 * label + SPAN, t * ROW + ROW);
    let size = (2 * MARGIN + columns * (panel.0 + GAP), HEADER + 2 * MARGIN + rows * (panel.1 + GAP));
    let mut text = String::new();
    {
        let root = SVGBackend::with_string(&mut text, (size.0.max(640) as u32, size.1 as u32)).into_drawing_area();
        root.fill(&WHITE)?;
        write(&root, sheet.title, (MARGIN, MARGIN), 16, INK, HPos::Left)?;
        let about = "Attention, a row of panels for each layer, a column for each head: tokens at the left look at tokens at the right; \
             the stronger the line, the larger the weight.";
        write(&root, about, (MARGIN, MARGIN + 24), 11, INK, HPos::Left)?;
        for (layer, weights) in (0..).zip(sheet.layers) {
            for (head, weights) in (0..).zip(weights.chunks_exact((t * t).max(1) as usize)) {
                let at = (MARGIN + head * (panel.0 + GAP), HEADER + MARGIN + layer * (panel.1 + GAP));
                let title = format!("layer {} head {}", layer + 1, head + 1);
                let colour = COLOURS[head as usize % COLOURS.len()];
                draw_panel(&root, at, label, (&title, colour), sheet, weights)?;
            }
        }
        root.present()?;
    }
    Ok(text)
}

/// One head: T tokens on either side, and the lines between them.
fn draw_panel(
    root: &Area<'_>,
    (x, y): (i32, i32),
    label: i32,
    (title, colour): (&str, RGBColor),
    sheet: &Sheet<'_>,
    weights: &[f32],
) -> Result<()> {
    let (left, right, top) = (x + label, x + label + SPAN, y + ROW);
    let middle = |row: usize| top + row as i32 * ROW + ROW / 2;
    write(root, title, ((left + right) / 2, y + 4), LABEL + 1, INK, HPos::Center)?;
    let frame = [(left, top), (right, top + sheet.tokens.len() as i32 * ROW)];
    root.draw(&Rectangle::new(frame, FAINT))?;
    for (from, row) in weights.chunks_exact(sheet.tokens.len().max(1)).enumerate() {
        for (to, &weight) in row.iter().enumerate().filter(|(_, weight)| **weight >= FAINTEST) {
            let line = [(left, middle(from)), (right, middle(to))];
            root.draw(&PathElement::new(line, colour.mix(f64::from(weight.min(1.0))).stroke_width(1)))?;
        }
    }
    for (row, (token, &second)) in sheet.tokens.iter().zip(sheet.second).enumerate() {
        let colour = if second { SECOND } else { INK };
        let token = shortened(token);
        write(root, &token, (left - 3, middle(row)), LABEL, colour, HPos::Right)?;
        write(root, &token, (right + 3, middle(row)), LABEL, colour, HPos::Left)?;
    }
    Ok(())
}

/// As much of a token as there is room for.
fn shortened(token: &str) -> String {
    if width(token) <= WIDEST {
        return token.to_owned();
    }
    let mut short = String::new();
    for c in token.chars() {
        if width(&short) + LABEL > WIDEST - LABEL {
            break;
        }
        short.push(c);
    }
    short + "…"
}

/// Text that is vertically centred on `at`.
fn write(root: &Area<'_>, text: &str, at: (i32, i32), size: i32, colour: RGBColor, side: HPos) -> Result<()> {
    let style = TextStyle::from((FONT, size).into_font()).color(&colour).pos(Pos::new(side, VPos::Center));
    Ok(root.draw(&Text::new(text.to_owned(), at, style))?)
}
