//! Projections of few rows by kernels of their own.

use super::case::Operation;
use super::row::{ANY, FOURS, Row, SHARED_FROM, SINGLES, TYPED_FOURS, row, subgroups};
use crate::classes::{
    BLOCKS, BLOCKS_ALONE, FEW_1, FEW_1_NORMED, FEW_1_WIDE, FEW_4, FEW_4_WIDE, FEW_8, FEW_8_NORMED, FEW_8_WIDE,
};

pub(super) static ROWS: &[Row] = &[
    row(
        Operation::LinearFew,
        "",
        &FEW_1,
        FOURS,
        |c, d| d.cpu && c.rows < SHARED_FROM,
        "up to three rows on a CPU: nothing is left to add up, and eight rows at once take as long as three and a half",
    ),
    row(Operation::LinearFew, "", &FEW_8, FOURS, |_, d| d.cpu, "more rows on a CPU: eight share every read of a weight"),
    subgroups(
        Operation::LinearFew,
        "",
        &FEW_1_WIDE,
        TYPED_FOURS,
        |c, _| c.rows == 1,
        "one row on a GPU: memory is the limit",
    ),
    row(Operation::LinearFew, "", &FEW_1_WIDE, FOURS, |c, _| c.rows == 1, "the same without subgroups"),
    row(Operation::LinearFew, "", &FEW_8_WIDE, FOURS, ANY, "more rows on a GPU: eight share every read of a weight"),
    row(Operation::LinearFew, "", &FEW_4, SINGLES, |_, d| d.cpu, "what is not in groups of four, on a CPU"),
    row(Operation::LinearFew, "", &FEW_4_WIDE, SINGLES, ANY, "any storage that is not in groups of four"),
    row(
        Operation::LinearNormed,
        "",
        &FEW_1_NORMED,
        FOURS,
        |c, d| d.cpu && c.rows < SHARED_FROM,
        "up to three rows on a CPU: normed once for all columns of a workgroup",
    ),
    row(
        Operation::LinearNormed,
        "",
        &FEW_8_NORMED,
        FOURS,
        |_, d| d.cpu,
        "more rows on a CPU: eight share every read of a weight",
    ),
    subgroups(
        Operation::LinearNormed,
        "",
        &FEW_1_WIDE,
        TYPED_FOURS,
        |c, _| c.rows == 1,
        "one row on a GPU: memory is the limit",
    ),
    row(Operation::LinearNormed, "", &FEW_1_WIDE, FOURS, |c, _| c.rows == 1, "the same without subgroups"),
    row(Operation::LinearNormed, "", &FEW_8_WIDE, FOURS, ANY, "more rows on a GPU: eight share every read of a weight"),
    row(Operation::LinearNormed, "", &FEW_4, SINGLES, |_, d| d.cpu, "what is not in groups of four, on a CPU"),
    row(Operation::LinearNormed, "", &FEW_4_WIDE, SINGLES, ANY, "any storage that is not in groups of four"),
    row(
        Operation::LinearBlocks,
        "",
        &BLOCKS_ALONE,
        ANY,
        |_, d| d.cpu,
        "a CPU: nothing is left to add up, and words that follow each other share a scale",
    ),
    row(
        Operation::LinearBlocks,
        "",
        &BLOCKS,
        ANY,
        ANY,
        "a GPU: memory is the limit, and neighbours read what lies together",
    ),
];
