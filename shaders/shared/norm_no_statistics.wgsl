fn store_statistics(row: u32, mean: f32, inverse_deviation: f32) {}
