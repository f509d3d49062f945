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
    pub(crate) parts: &'a [Part<'a>],
}

/// Layers of one kind.
pub(crate) struct Part<'a> {
    /// What is in front of a panel's name.
    pub(crate) name: &'a str,
    /// T tokens that look.
    pub(crate) from: &'a [String],
    /// S tokens that are looked at.
    pub(crate) to: &'a [String],
    /// Which of either belong to a second segment; none where it is empty.
    pub(crate) second: &'a [bool],
    pub(crate) n_heads: usize,
    /// For each layer the weights (NH, T, S).
    pub(crate) layers: &'a [Vec<f32>],
}

impl Part<'_> {
    /// The width of the widest label, and as much as a panel's name needs on either side.
    fn label(&self) -> i32 {
        let name = (width(self.name) + width("layer 10 head 10") - SPAN) / 2;
        let tokens = self.from.iter().chain(self.to).map(|token| width(token)).max().unwrap_or(0);
        tokens.min(WIDEST).max(name) + 4
    }

    /// The size of a panel.
    fn panel(&self) -> (i32, i32) {
        (2 * self.label() + SPAN, (self.from.len().max(self.to.len()) as i32 + 1) * ROW)
    }

    /// The size of all of them, gaps included.
    fn size(&self) -> (i32, i32) {
        let (width, height) = self.panel();
        (self.n_heads as i32 * (width + GAP), self.layers.len() as i32 * (height + GAP))
    }
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
    let sizes = || sheet.parts.iter().map(Part::size);
    let (widest, height) = (sizes().map(|s| s.0).max().unwrap_or(0), sizes().map(|s| s.1).sum::<i32>());
    let size = (2 * MARGIN + widest, HEADER + 2 * MARGIN + height);
    let mut text = String::new();
    {
        let root = SVGBackend::with_string(&mut text, (size.0.max(640) as u32, size.1 as u32)).into_drawing_area();
        root.fill(&WHITE)?;
        write(&root, sheet.title, (MARGIN, MARGIN), 16, INK, HPos::Left)?;
        let about = "Attention, a row of panels for each layer, a column for each head: tokens at the left look at tokens at the right; \
             the stronger the line, the larger the weight.";
        write(&root, about, (MARGIN, MARGIN + 24), 11, INK, HPos::Left)?;
        let mut y = HEADER + MARGIN;
        for part in sheet.parts {
            let panel = part.panel();
            for (layer, weights) in (0..).zip(part.layers) {
                for (head, weights) in (0..).zip(weights.chunks_exact((part.from.len() * part.to.len()).max(1))) {
                    let at = (MARGIN + head * (panel.0 + GAP), y + layer * (panel.1 + GAP));
                    let title = format!("{}layer {} head {}", part.name, layer + 1, head + 1);
                    let colour = COLOURS[head as usize % COLOURS.len()];
                    draw_panel(&root, at, (&title, colour), part, weights)?;
                }
            }
            y += part.size().1;
        }
        root.present()?;
    }
    Ok(text)
}

/// One head: tokens on either side, and the lines between them.
fn draw_panel(
    root: &Area<'_>,
    (x, y): (i32, i32),
    (title, colour): (&str, RGBColor),
    part: &Part<'_>,
    weights: &[f32],
) -> Result<()> {
    let label = part.label();
    let (left, right, top) = (x + label, x + label + SPAN, y + ROW);
    let middle = |row: usize| top + row as i32 * ROW + ROW / 2;
    write(root, title, ((left + right) / 2, y + 4), LABEL + 1, INK, HPos::Center)?;
    let frame = [(left, top), (right, y + part.panel().1)];
    root.draw(&Rectangle::new(frame, FAINT))?;
    for (from, row) in weights.chunks_exact(part.to.len().max(1)).enumerate() {
        for (to, &weight) in row.iter().enumerate().filter(|(_, weight)| **weight >= FAINTEST) {
            let line = [(left, middle(from)), (right, middle(to))];
            root.draw(&PathElement::new(line, colour.mix(f64::from(weight.min(1.0))).stroke_width(1)))?;
        }
    }
    for (tokens, x, side) in [(part.from, left - 3, HPos::Right), (part.to, right + 3, HPos::Left)] {
        for (row, token) in tokens.iter().enumerate() {
            let second = part.second.get(row).is_some_and(|second| *second);
            let colour = if second { SECOND } else { INK };
            write(root, &shortened(token), (x, middle(row)), LABEL, colour, side)?;
        }
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
