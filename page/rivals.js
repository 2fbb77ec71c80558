// What WaLLoC stands beside: the picture resized to as many numbers, and JPEG and WebP of as many bytes, by the browser.

/** The picture made smaller, `reduction` times fewer samples, and enlarged again; the bytes are those of a PNG. */
export async function resized(image, reduction) {
  const factor = Math.sqrt(reduction);
  const [width, height] = [image.width, image.height].map((side) => Math.max(1, Math.round(side / factor)));
  const small = new OffscreenCanvas(width, height);
  let begin = performance.now();
  scaled(small, await createImageBitmap(image));
  const encode = performance.now() - begin;
  begin = performance.now();
  const large = new OffscreenCanvas(image.width, image.height);
  const picture = scaled(large, small).getImageData(0, 0, image.width, image.height);
  const { size } = await small.convertToBlob();
  return { name: "Resized", numbers: 3 * width * height, bytes: size, picture, encode, decode: performance.now() - begin };
}

function scaled(canvas, source) {
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  context.drawImage(source, 0, 0, canvas.width, canvas.height);
  return context;
}

/** [{name, bytes, picture, encode, decode}]; the largest file of at most `budget` bytes, or the smallest there is. */
export async function jpegAndWebp(image, budget) {
  const canvas = new OffscreenCanvas(image.width, image.height);
  canvas.getContext("2d").putImageData(image, 0, 0);
  return Promise.all([rival("JPEG", "image/jpeg", canvas, budget), rival("WebP", "image/webp", canvas, budget)]);
}

async function rival(name, type, canvas, budget) {
  let low = 0;
  let high = 100;
  let begin = performance.now();
  let best = await canvas.convertToBlob({ type, quality: 0 });
  if (best.type !== type) return { name }; // the browser does not write this format
  let encode = performance.now() - begin;
  while (low < high) {
    const quality = Math.ceil((low + high) / 2);
    begin = performance.now();
    const blob = await canvas.convertToBlob({ type, quality: quality / 100 });
    if (blob.size <= budget) [best, low, encode] = [blob, quality, performance.now() - begin];
    else high = quality - 1;
  }
  begin = performance.now();
  const bitmap = await createImageBitmap(best);
  const out = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d", { willReadFrequently: true });
  out.drawImage(bitmap, 0, 0);
  const picture = out.getImageData(0, 0, canvas.width, canvas.height);
  return { name, bytes: best.size, picture, encode, decode: performance.now() - begin };
}
