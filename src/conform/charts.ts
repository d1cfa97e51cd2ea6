/** The pictures of the report, as SVG. Colours of text and lines are the page's own, so that both themes can be read. */
import { type Axis, parse, type Spec, View } from 'vega';
import type { CandidateResult } from './conform.ts';

/** Told apart in light and dark alike: Observable's ten, of which eight are needed. */
const palette = ['#4269d0', '#efb118', '#ff725c', '#6cc5b0', '#3ca951', '#ff8ab7', '#a463f2', '#97bbf5'];
const height = 220;
const width = 640;
const ink = 'currentColor';

/** One mark: `group` is a tap, or a constant where there is one line only. */
interface Mark {
  readonly x: number;
  readonly y: number;
  readonly group: string;
}

interface Chart {
  readonly label: string;
  readonly xTitle: string;
  readonly yTitle: string;
  readonly marks: readonly Mark[];
  /** Where the first divergence is, if the chart shows it. */
  readonly first: { readonly x: number; readonly text: string } | null;
}

/** A distance by layer, one line for each tap. */
export function layerChart(candidate: CandidateResult, measure: 'nmse' | 'maxAbs', title: string): Promise<string> {
  const { first, points } = candidate;
  return draw({
    label: `${title} by layer, ${candidate.name}`,
    xTitle: 'layer (the logits come after the last)',
    yTitle: title,
    marks: points
      .filter(({ tap }) => tap !== 'router-choices')
      .map((point) => ({ x: point.layer, y: point[measure], group: point.tap })),
    first: first && { x: first.layer, text: `first: ${first.tap}, token ${first.token}` },
  });
}

/** Tokens that went to other experts, by layer. */
export function routerChart({ name, routerTokens }: CandidateResult): Promise<string> {
  return draw({
    label: `tokens with another set of experts by layer, ${name}`,
    xTitle: 'layer',
    yTitle: 'tokens',
    marks: routerTokens.map(({ layer, tokens }) => ({ x: layer, y: tokens, group: 'router-choices' })),
    first: null,
  });
}

/** The divergence of the next-token distributions, by token. */
export function divergenceChart({ name, divergence, first }: CandidateResult): Promise<string> {
  return draw({
    label: `KL divergence of the logits by token, ${name}`,
    xTitle: 'token',
    yTitle: 'KL divergence, nats',
    marks: divergence.tokens.map((y, x) => ({ x, y, group: 'logits' })),
    first: first && { x: first.token, text: `first: layer ${first.layer}, ${first.tap}` },
  });
}

/** Decades of the vertical axis. Zero has no logarithm and infinity no place: they get the lowest and the highest line. */
interface Decades {
  readonly floor: number;
  readonly ceiling: number;
  readonly ticks: readonly number[];
}

const mostTicks = 8;

function decades(marks: readonly Mark[]): Decades {
  const exponents = marks.filter(({ y }) => y > 0 && Number.isFinite(y)).map(({ y }) => Math.log10(y));
  if (exponents.length === 0) return { floor: 1e-9, ceiling: 1, ticks: [1e-9, 1] };
  const low = Math.floor(Math.min(...exponents)) - 1;
  const high = Math.ceil(Math.max(...exponents)) + 1;
  const stride = Math.ceil((high - low) / mostTicks);
  const between = Array.from({ length: high - low - 1 }, (_, index) => low + 1 + index).filter(
    (_, index) => index % stride === 0,
  );
  const power = (exponent: number) => Number(`1e${exponent}`);
  return { floor: power(low), ceiling: power(high), ticks: [low, ...between, high].map(power) };
}

async function draw(chart: Chart): Promise<string> {
  const view = new View(parse(specOf(chart)), { renderer: 'none' });
  try {
    return await view.toSVG();
  } finally {
    view.finalize();
  }
}

function specOf({ label, xTitle, yTitle, marks, first }: Chart): Spec {
  const { floor, ceiling, ticks } = decades(marks);
  const values = marks.map((mark) => ({ ...mark, y: Math.min(Math.max(mark.y, floor), ceiling) }));
  const groups = [...new Set(marks.map(({ group }) => group))];
  const axis = {
    domainColor: ink,
    tickColor: ink,
    labelColor: ink,
    titleColor: ink,
    titleFontWeight: 'normal',
  } as const;
  const grid: Partial<Axis> = { grid: true, gridColor: ink, gridOpacity: 0.12 };
  return {
    description: label,
    width,
    height,
    padding: 5,
    data: [
      { name: 'marks', values },
      { name: 'first', values: first ? [first] : [] },
    ],
    scales: [
      { name: 'x', type: 'linear', range: 'width', domain: { data: 'marks', field: 'x' }, padding: 8 },
      { name: 'y', type: 'log', range: 'height', domain: [floor, ceiling] },
      { name: 'colour', type: 'ordinal', range: palette, domain: groups },
    ],
    axes: [
      { orient: 'bottom', scale: 'x', title: xTitle, format: 'd', tickMinStep: 1, ...axis },
      {
        orient: 'left',
        scale: 'y',
        title: yTitle,
        values: [...ticks],
        encode: {
          labels: {
            update: {
              text: {
                signal: `datum.value <= ${floor} ? 'equal' : datum.value >= ${ceiling} ? 'unbounded' : format(datum.value, '~g')`,
              },
            },
          },
        },
        ...axis,
        ...grid,
      },
    ],
    legends: groups.length > 1 ? [{ stroke: 'colour', symbolType: 'stroke', labelColor: ink, orient: 'right' }] : [],
    marks: [
      {
        type: 'group',
        from: { facet: { name: 'line', data: 'marks', groupby: 'group' } },
        marks: [
          {
            type: 'line',
            from: { data: 'line' },
            encode: {
              enter: {
                x: { scale: 'x', field: 'x' },
                y: { scale: 'y', field: 'y' },
                stroke: { scale: 'colour', field: 'group' },
                strokeWidth: { value: 1.5 },
              },
            },
          },
          {
            type: 'symbol',
            from: { data: 'line' },
            encode: {
              enter: {
                x: { scale: 'x', field: 'x' },
                y: { scale: 'y', field: 'y' },
                fill: { scale: 'colour', field: 'group' },
                size: { value: 18 },
              },
            },
          },
        ],
      },
      {
        type: 'rule',
        from: { data: 'first' },
        encode: {
          enter: {
            x: { scale: 'x', field: 'x' },
            y: { value: 0 },
            y2: { value: height },
            stroke: { value: ink },
            strokeDash: { value: [4, 3] },
          },
        },
      },
      {
        type: 'text',
        from: { data: 'first' },
        encode: {
          enter: {
            x: { scale: 'x', field: 'x' },
            y: { value: -4 },
            text: { field: 'text' },
            fill: { value: ink },
            align: { value: 'left' },
          },
        },
      },
    ],
  };
}
