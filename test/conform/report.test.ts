import { describe, expect, it } from 'vitest';
import { type Contestant, conform } from '../../src/conform/conform.ts';
import { renderReport } from '../../src/conform/report.ts';
import { deviceFormula, formula, type Plant } from './fake-runtimes.ts';

const tokens = [1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4];
const machine = { cpu: 'Abacus & Sons <9000>', cores: 2, node: '24.0.0', platform: 'linux x64', memoryTotal: 8e9 };

async function page(...plants: Plant[]): Promise<string> {
  return pageOf(formula('other', ...plants));
}

async function pageOf(candidate: Contestant): Promise<string> {
  const result = await conform([formula('wasm'), candidate], tokens);
  const pieces = tokens.map((token) => `<piece ${token}>`);
  return renderReport({ result, machine, pieces, version: '1.2.3' });
}

const wrong: Plant = { tap: 'attention', layer: 2, token: 7, channel: 3, change: (value) => value + 0.25 };

/** Every element's name, in order; throws where tags do not nest. */
function elements(html: string): string[] {
  const seen: string[] = [];
  const open: string[] = [];
  const body = html.replace(/<!doctype html>/, '').replaceAll(/<style>.*?<\/style>/gs, '');
  for (const [tag, close, name = '', selfClosing] of body.matchAll(
    /<(\/?)([a-zA-Z][\w-]*)(?:\s+[\w:-]+="[^"<]*")*\s*(\/?)>/g,
  )) {
    if (close) {
      const last = open.pop();
      if (last !== name) throw new Error(`${tag} closes <${last}>`);
      continue;
    }
    seen.push(name);
    if (!selfClosing && name !== 'meta') open.push(name);
  }
  if (open.length > 0) throw new Error(`<${open.at(-1)}> is not closed`);
  // What is left between tags must hold no "<": every one of them was a tag.
  expect(seen.length * 2).toBeGreaterThanOrEqual(body.split('<').length - 1);
  return seen;
}

describe('the report', () => {
  it('nests, holds four pictures of each candidate, and its tables', async () => {
    for (const html of [await page(), await page(wrong)]) {
      const names = elements(html);
      expect(names.filter((name) => name === 'svg')).toHaveLength(4);
      expect(names.filter((name) => name === 'figure')).toHaveLength(4);
      expect(names.filter((name) => name === 'path').length).toBeGreaterThan(20);
      expect(names.filter((name) => name === 'table')).toHaveLength(3);
    }
  });

  it('says in a sentence what a GPU is held to, and in the table what is allowed where', async () => {
    const html = await pageOf(deviceFormula('cuda'));
    expect(html).toContain(
      "an NMSE of at most 5e-4 a stage where each layer and the head begin with the reference's residual",
    );
    expect(html).toContain('on its own values: KL divergence of the logits: mean 0, largest 0; allowed 1.00e-3');
    expect(html).toContain('<td>ties 1.00e-3</td>');
  });

  it('needs nothing from outside', async () => {
    const html = (await page(wrong)).replaceAll(/ xmlns(:\w+)?="[^"]*"/g, '');
    expect(html).not.toMatch(/\w+:\/\/|\b(src|href|srcset)=|@import|url\(|<script|<link|<iframe/i);
  });

  it('names the first divergence in its text and in its pictures', async () => {
    const html = await page(wrong);
    expect(html).toContain('other differs from wasm first in layer 2, attention, token 7, channel 3');
    expect(html).toContain('first: attention, token 7');
    expect(html).toContain('first: layer 2, attention');
    const equal = await page();
    expect(equal).toContain('other agrees with wasm');
    expect(equal).not.toContain('first: ');
  });

  it('names both configurations, the machine, and every token of the prompt, all of it escaped', async () => {
    const html = await page();
    expect(html).toContain('<td>wasm</td><td>wasm</td><td>formula</td><td>1</td>');
    expect(html).toContain('<td>other</td><td>wasm</td><td>formula</td><td>1</td>');
    expect(html).toContain('Abacus &amp; Sons &lt;9000&gt;, 2 hardware threads');
    for (const token of new Set(tokens)) expect(html).toContain(`&lt;piece ${token}&gt;`);
    expect(html).toContain(tokens.join(' '));
  });

  it('draws in the colours of the page, for light and dark', async () => {
    const html = await page(wrong);
    expect(html).toContain('prefers-color-scheme: dark');
    for (const [svg] of html.matchAll(/<svg.*?<\/svg>/gs)) {
      expect(svg).toContain('currentColor');
      expect(svg).not.toMatch(/(fill|stroke)="(#000|black|white|#fff|#888)"/);
    }
  });
});
