//! Loss: netem's three models.

use super::random::{Chance, Random};

/// How packets are lost.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Loss {
    /// Each by chance: `loss 1% [CORRELATION]`.
    Random(Chance),
    /// A Markov chain of four states: `loss state P13 [P31 [P32 [P23 [P14]]]]`.
    State {
        /// From the good time to a loss in a burst.
        p13: f64,
        /// From a loss in a burst to the good time.
        p31: f64,
        /// From a loss in a burst to a packet received in it.
        p32: f64,
        /// From a packet received in a burst to a loss in it.
        p23: f64,
        /// From the good time to a single loss.
        p14: f64,
        /// Where the chain stands.
        at: State,
    },
    /// Gilbert and Elliot: `loss gemodel P [R [1-H [1-K]]]`.
    Gemodel {
        /// From good to bad.
        p: f64,
        /// From bad to good.
        r: f64,
        /// Loss in the bad state.
        loss_bad: f64,
        /// Loss in the good state.
        loss_good: f64,
        /// Which it is.
        bad: bool,
    },
}

/// A state of the chain of four.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// 1: received, good time.
    Good,
    /// 2: received within a burst.
    ReceivedInBurst,
    /// 3: lost within a burst.
    LostInBurst,
    /// 4: a single loss.
    LostAlone,
}

impl Loss {
    /// Whether the next packet is lost.
    pub fn happens(&mut self, random: &mut Random) -> bool {
        match self {
            Self::Random(chance) => chance.happens(random),
            Self::State { p13, p31, p32, p23, p14, at } => {
                let draw = random.unit();
                *at = match *at {
                    State::Good if draw < *p14 => State::LostAlone,
                    State::Good if draw < *p14 + *p13 => State::LostInBurst,
                    State::Good | State::LostAlone => State::Good,
                    State::ReceivedInBurst if draw < *p23 => State::LostInBurst,
                    State::ReceivedInBurst => State::ReceivedInBurst,
                    State::LostInBurst if draw < *p32 => State::ReceivedInBurst,
                    State::LostInBurst if draw < *p32 + *p31 => State::Good,
                    State::LostInBurst => State::LostInBurst,
                };
                matches!(at, State::LostInBurst | State::LostAlone)
            }
            Self::Gemodel { p, r, loss_bad, loss_good, bad } => {
                // As netem: the loss is drawn with the state before the step.
                let (turn, lose) = if *bad { (*r, *loss_bad) } else { (*p, *loss_good) };
                *bad ^= random.unit() < turn;
                random.unit() < lose
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::random::Correlated;
    use super::*;

    fn share(mut loss: Loss) -> f64 {
        let mut random = Random::new(11);
        (0..200_000).filter(|_| loss.happens(&mut random)).count() as f64 / 200_000.0
    }

    #[test]
    fn each_model_loses_its_share() {
        let random = Loss::Random(Chance { probability: 0.01, draw: Correlated::new(0.0) });
        assert!((share(random) - 0.01).abs() < 0.001);
        // Stationary: p13 / (p13 + p31) with p32 = p23 = p14 = 0.
        let state = Loss::State { p13: 0.01, p31: 0.19, p32: 0.0, p23: 0.0, p14: 0.0, at: State::Good };
        assert!((share(state) - 0.05).abs() < 0.005, "{}", share(state));
        let alone = Loss::State { p13: 0.0, p31: 1.0, p32: 0.0, p23: 0.0, p14: 0.25, at: State::Good };
        assert!((share(alone) - 0.2).abs() < 0.005, "a single loss is never followed by another");
        // Stationary: a tenth of the time bad, half of it lost.
        let gemodel = Loss::Gemodel { p: 0.01, r: 0.09, loss_bad: 0.5, loss_good: 0.0, bad: false };
        assert!((share(gemodel) - 0.05).abs() < 0.005, "{}", share(gemodel));
    }
}
