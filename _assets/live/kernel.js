// The kernels of infinitely wide, fully connected networks, as `kernels` of the package computes them.
// Points are arrays of numbers, kernels arrays of rows.

const DEFAULTS = { depth: 1, activation: "relu", wStd: Math.SQRT2, bStd: 0.1 }

// Both kernels between all points of two sets.
function kernel(x1, x2, options = {}) {
  const { depth, activation, wStd, bStd } = { ...DEFAULTS, ...options }
  const recursion = { relu: reluPair, erf: erfPair }[activation]
  if (!recursion) throw new Error(`activation: expected "relu" or "erf", got ${activation}`)
  const network = { depth, wVar: wStd * wStd, bVar: bStd * bStd }
  const rows = x1.map(x => side(network, x)), columns = x2 === x1 ? rows : x2.map(x => side(network, x))
  const pairs = rows.map(a => columns.map(b => recursion(network, a, b)))
  return { nngp: pairs.map(row => row.map(pair => pair.nngp)), ntk: pairs.map(row => row.map(pair => pair.ntk)) }
}

// A point with a constant coordinate for the bias: its direction, and its variance in the first layer.
function side({ wVar, bVar }, x) {
  const inputs = x.map(v => v * Math.sqrt(wVar / x.length))
  if (bVar) inputs.push(Math.sqrt(bVar))
  const norm = Math.hypot(...inputs)
  return { inputs, norm, unit: inputs.map(v => (norm ? v / norm : 0)) }
}

// The recursion runs on (1 - cos(theta)) / 2, in which nothing cancels, and on the norms.
function reluPair({ depth, wVar, bVar }, a, b) {
  const apart = distance(a.unit, b.unit, 1), along = distance(a.unit, b.unit, -1)
  let theta = 2 * Math.atan2(apart, along), half = apart * apart / 4
  let left = a.norm, right = b.norm, nngp = left * right * (1 - 2 * half), ntk = nngp
  for (let layer = 0; layer < depth; layer++) {
    const lost = half - sinMinusThetaCos(theta, half) / (2 * Math.PI) // 1/2 - E[phi phi] / (left right)
    nngp = wVar * left * right * (0.5 - lost) + bVar
    ntk = nngp + wVar * (0.5 - theta / (2 * Math.PI)) * ntk
    const newLeft = Math.sqrt(wVar / 2 * left * left + bVar), newRight = Math.sqrt(wVar / 2 * right * right + bVar)
    const after = newLeft * newRight
    const ofNorms = wVar / 2 * bVar * (left - right) ** 2 / (after + wVar / 2 * left * right + bVar)
    half = after ? Math.min(1, Math.max(0, (ofNorms + wVar * left * right * lost) / (2 * after))) : 0
    theta = 2 * Math.asin(Math.sqrt(half))
    left = newLeft
    right = newRight
  }
  return { nngp, ntk }
}

// sin(theta) - theta cos(theta), by its series where the terms cancel.
function sinMinusThetaCos(theta, half) {
  const t = theta * theta
  if (theta < 0.25) return t * theta * (1 / 3 - t * (1 / 30 - t * (1 / 840 - t * (1 / 45360 - t / 3991680))))
  return 2 * Math.sqrt(half * (1 - half)) - theta + 2 * theta * half
}

function erfPair({ depth, wVar, bVar }, a, b) {
  let [q1, q2, c] = [[a, a], [b, b], [a, b]].map(([u, v]) => dot(u.inputs, v.inputs)), ntk = c
  const dual = (q1, q2, c) => 2 / Math.PI * Math.atan2(2 * c, erfRoot(q1, q2, c))
  for (let layer = 0; layer < depth; layer++) {
    const slope = 4 / Math.PI / erfRoot(q1, q2, c), before = [[q1, q1, q1], [q2, q2, q2], [q1, q2, c]];
    [q1, q2, c] = before.map(variances => wVar * dual(...variances) + bVar)
    ntk = c + wVar * slope * ntk
  }
  return { nngp: c, ntk }
}

const erfRoot = (q1, q2, c) => Math.sqrt(1 + 2 * q1 + 2 * q2 + 4 * Math.max(0, q1 * q2 - c * c))

function dot(u, v) {
  let sum = 0
  for (let i = 0; i < u.length; i++) sum += u[i] * v[i]
  return sum
}

function distance(u, v, sign) {
  let sum = 0
  for (let i = 0; i < u.length; i++) sum += (u[i] - sign * v[i]) ** 2
  return Math.sqrt(sum)
}
