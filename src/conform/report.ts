/** The report as one HTML page: nothing outside it is needed to read it, today or in ten years. */
import type { Machine } from '../select/machine.ts';
import { divergenceChart, layerChart, routerChart } from './charts.ts';
import type { CandidateResult, Configuration, ConformResult } from './conform.ts';
import { divergenceLine, notFinite, routingLine, tapCells, tapColumns, tapRows, verdict } from './table.ts';

export interface ReportInput {
  readonly result: ConformResult;
  readonly machine: Pick<Machine, 'cpu' | 'cores' | 'node' | 'platform' | 'memoryTotal'>;
  /** What each token says, [tokens]. */
  readonly pieces: readonly string[];
  readonly version: string;
}

/** Renders the page. */
export async function renderReport({ result, machine, pieces, version }: ReportInput): Promise<string> {
  const { config, reference, candidates, tokens } = result;
  const names = candidates.map(({ name }) => name).join(', ');
  const sections = await Promise.all(candidates.map((candidate) => candidateSection(candidate, reference)));
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>${text(`${config.name}: ${names} beside ${reference.name}`)}</title>
<style>${style}</style>
</head>
<body>
<h1>${text(config.name)}</h1>
<p>${text(`${names} beside ${reference.name}, the reference: ${tokens.length} tokens through ${config.layers} layers.`)}</p>
${table(
  ['backend', 'runs on', 'kernels', 'ranks'],
  [reference, ...candidates].map(({ name, backend, isa, threads }) => [name, backend, isa, `${threads}`]),
)}
<p>${text(`${machine.cpu}, ${machine.cores} hardware threads, ${(machine.memoryTotal / 1e9).toFixed(0)} GB of memory; ${machine.platform}, Node ${machine.node}, Perigee ${version}.`)}</p>
${sections.join('\n')}
<h2>What the numbers mean</h2>
${glossary}
<h2>The prompt</h2>
<p class="tokens">${pieces.map((piece, index) => `<span title="token ${index}: id ${tokens[index]}">${text(piece)}</span>`).join('')}</p>
<p class="ids">${tokens.join(' ')}</p>
</body>
</html>
`;
}

async function candidateSection(candidate: CandidateResult, reference: Configuration): Promise<string> {
  const strays = notFinite(candidate);
  const [nmse, maxAbs, router, divergence] = await Promise.all([
    layerChart(candidate, 'nmse', 'NMSE'),
    layerChart(candidate, 'maxAbs', 'max abs difference'),
    candidate.routerTokens.length > 0 ? routerChart(candidate) : null,
    divergenceChart(candidate),
  ]);
  const figures: [string | null, string][] = [
    [nmse, 'Normalized mean square error by layer, one line for each tap'],
    [maxAbs, 'The largest difference of two values by layer'],
    [router, 'Tokens that went to another set of experts, by layer'],
    [divergence, 'KL divergence of the next-token distributions, by token'],
  ];
  return `<section>
<h2>${text(candidate.name)} beside ${text(reference.name)}</h2>
<p class="${candidate.agrees ? 'agrees' : 'differs'}">${text(verdict(candidate, reference.name))}.</p>
<p>${text(`The rule applied: ${candidate.band.name}.`)}</p>
<p>${text(`${divergenceLine(candidate, reference.name)}; ${routingLine(candidate)}.`)}</p>
${strays > 0 ? `<p class="differs">${strays} values are NaN or infinite.</p>` : ''}
${table(
  tapColumns,
  tapRows(candidate).map((row) => tapCells(row, candidate.band)),
)}
${figures
  .filter(([svg]) => svg !== null)
  .map(([svg, caption]) => `<figure>${svg}<figcaption>${caption}</figcaption></figure>`)
  .join('\n')}
<details><summary>Every layer</summary>
${table(
  ['layer', ...tapColumns.filter((column) => !column.includes('layer'))],
  candidate.points.map((worst) => {
    const [tap = '', , , ...cells] = tapCells({ tap: worst.tap, layers: 1, layersOutside: 0, worst }, candidate.band);
    return [`${worst.layer}`, tap, ...cells];
  }),
)}
</details>
</section>`;
}

function table(columns: readonly string[], rows: readonly (readonly string[])[]): string {
  const line = (cells: readonly string[], tag: 'th' | 'td') =>
    `<tr>${cells.map((cell) => `<${tag}>${text(cell)}</${tag}>`).join('')}</tr>`;
  return `<table><thead>${line(columns, 'th')}</thead><tbody>${rows.map((row) => line(row, 'td')).join('\n')}</tbody></table>`;
}

function text(value: string): string {
  return value.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;').replaceAll('"', '&quot;');
}

const meanings: readonly (readonly [string, string])[] = [
  ['latent', 'the row appended to the KV cache: the normed latent and the rotated key'],
  ['attention', 'what attention gives, before its output projection'],
  ['router-scores', "the sigmoid of the router's logits (the logits where the model's router is a softmax)"],
  ['router-choices', 'the experts a token went to'],
  ['feed-forward', 'routed and shared experts, or the dense network, before it is added to the residual'],
  ['residual', 'what the layer leaves to the next'],
  [
    'layers outside',
    'layers in which the backend does not keep to its band: equal bits between CPU backends, distances for a GPU',
  ],
  ['tokens', 'tokens of the worst layer with any different value'],
  ['max abs', 'the largest |c − r| of a candidate value c and the reference value r'],
  ['NMSE', 'the sum of (c − r)² over the sum of r²'],
  [
    'NMSE allowed',
    'nothing between CPU backends. On a GPU 5e-4 for each stage since the layer began, with the reference’s residual put in at the beginning of every layer and of the head, so that errors pass on within a layer only',
  ],
  ['cosine difference', '1 − 2 r·c / (r·r + c·c), as FlashMLA’s tests have it: it sees a wrong scale too'],
  [
    'KL divergence',
    'the sum of p (ln p − ln q), where p is the reference’s next-token distribution and q the candidate’s, in nats; for a GPU that of a second run, on its own values and without taps',
  ],
  ['unbounded', 'one side has a NaN or an infinity that the other lacks; NaN on both sides counts as equal'],
  [
    'first divergence',
    'the earliest layer and tap outside the band, there the earliest token and channel (all it depends on is equal), or where bits may differ the place of the largest difference',
  ],
];
const glossary = `<dl>${meanings.map(([name, meaning]) => `<dt>${text(name)}</dt><dd>${text(meaning)}</dd>`).join('\n')}</dl>`;

const style = `
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #fff; --rule: #d0d7de; --good: #1a7f37; --bad: #cf222e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --paper: #0d1117; --rule: #30363d; --good: #3fb950; --bad: #ff7b72; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 900px; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 0.2rem 0.9rem 0.2rem 0; border-bottom: 1px solid var(--rule); font-weight: normal; }
th { opacity: 0.7; }
figure { margin: 1.5rem 0; } figure svg { max-width: 100%; height: auto; overflow: visible; } figcaption { opacity: 0.7; }
dt { font-weight: 600; } dd { margin: 0 0 0.4rem 1rem; }
.agrees { color: var(--good); font-weight: 600; } .differs { color: var(--bad); font-weight: 600; }
.tokens span { white-space: pre-wrap; border-bottom: 1px solid var(--rule); margin-right: 1px; } .ids { opacity: 0.6; overflow-wrap: anywhere; }
`;
