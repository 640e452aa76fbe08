//! Which instruction levels a test goes through.

use rnncore::simd::Level;

/// All levels of this machine; or exactly those that the environment variable `RNNCORE_TEST_LEVELS`
/// promises, as in `RNNCORE_TEST_LEVELS=portable,avx2,avx512`.
///
/// # Panics
/// When this machine lacks a promised level: a test that cannot do what was promised must not pass.
pub fn levels() -> Vec<Level> {
    match std::env::var("RNNCORE_TEST_LEVELS") {
        Err(_) => Level::available(),
        Ok(names) => {
            let named = |name: &str| {
                Level::named(name.trim())
                    .unwrap_or_else(|error| panic!("RNNCORE_TEST_LEVELS: {error}"))
            };
            names.split(',').map(named).collect()
        }
    }
}
