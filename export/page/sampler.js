// Picks a character from next-character logits, as charformer/sampling/sampler.py does.

const GREEDY_BELOW = 1e-280; // temperatures at which a division would overflow
const MOST_ALTERNATIVES = 8; // kept for each character

/** Return the index of the largest number, the first of equal ones. */
function argmax(values) {
  let best = 0;
  for (let id = 1; id < values.length; id++) {
    if (values[id] > values[best]) best = id;
  }
  return best;
}

/** Return whether a temperature always picks the likeliest character. */
export function isGreedy(temperature) {
  return temperature < GREEDY_BELOW;
}

/**
 * Return the logits divided by the temperature, with -Infinity for those that top-k, then top-p (Holtzman et al. 2020)
 * leave out.
 * `topK` and `topP` are null where they are off; a greedy temperature scales and leaves out nothing.
 */
export function scaledLogits(logits, { temperature, topK, topP }) {
  const scaled = Float64Array.from(logits);
  if (isGreedy(temperature)) return scaled;
  for (let id = 0; id < scaled.length; id++) scaled[id] /= temperature;
  if (topK !== null && topK < scaled.length) {
    for (const id of ranked(scaled).slice(topK)) scaled[id] = -Infinity;
  }
  if (topP !== null && topP < 1) {
    const order = ranked(scaled);
    const weights = order.map((id) => Math.exp(scaled[id] - scaled[order[0]]));
    const enough = topP * weights.reduce((sum, weight) => sum + weight, 0);
    let sum = 0;
    order.forEach((id, rank) => {
      sum += weights[rank];
      if (sum - weights[rank] >= enough) scaled[id] = -Infinity;
    });
  }
  return scaled;
}

/** Return all ids, the likeliest first; equally likely ones in order of id. */
function ranked(scaled) {
  return Array.from(scaled.keys()).sort((a, b) => scaled[b] - scaled[a] || a - b);
}

/** Return the id that scaled logits and noise pick by the Gumbel-max trick (Maddison et al. 2014); null is no noise. */
export function pick(scaled, noise) {
  return argmax(noise === null ? scaled : scaled.map((value, id) => value + noise[id]));
}

/** Return the likeliest characters and the one picked, with their probabilities: [[id, probability], ...]. */
export function alternatives(scaled, picked) {
  const most = scaled[argmax(scaled)];
  const weights = scaled.map((value) => Math.exp(value - most));
  const sum = weights.reduce((total, weight) => total + weight, 0);
  const left = Float64Array.from(weights);
  const found = [];
  while (found.length < Math.min(MOST_ALTERNATIVES, left.length)) {
    const id = argmax(left);
    if (left[id] === 0) break; // left out by top-k or top-p
    found.push([id, weights[id] / sum]);
    left[id] = 0;
  }
  if (!found.some(([id]) => id === picked)) found.push([picked, weights[picked] / sum]);
  return found;
}
